"""One HTML page that holds all of it and loads nothing: of parts that are HTML already, or of Markdown."""

import html

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>body{{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}} img{{max-width:100%}}
td,th{{font-size:13px;padding:.2em .8em;text-align:left;vertical-align:top}} section{{overflow-x:auto}}</style></head>
<body>{body}
</body></html>
"""


def page(title: str, body: str) -> str:
    """A page of HTML. ``title``: text; ``body``: HTML."""
    return PAGE.format(title=html.escape(title), body=body)


def of_markdown(title: str, text: str) -> str:
    """A page of Markdown with tables; HTML in it is shown as text."""
    import mistune

    return page(title, f"<section>{mistune.create_markdown(escape=True, plugins=['table'])(text)}</section>")
