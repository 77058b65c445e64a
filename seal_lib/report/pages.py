"""Make one self-contained HTML page, from HTML parts or from Markdown."""

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
    """Return an HTML page; ``title`` is text and ``body`` is HTML."""
    return PAGE.format(title=html.escape(title), body=body)


def of_markdown(title: str, text: str) -> str:
    """Return an HTML page from Markdown with tables; HTML inside it is shown as text."""
    import mistune

    return page(title, f"<section>{mistune.create_markdown(escape=True, plugins=['table'])(text)}</section>")
