"""Read YAML files written by people: small plain files in YAML 1.2, with one sentence for anything wrong in them.

In YAML 1.2 `1e-4` is a number, `012` is 12, and `on`, `yes` and `1:30` are strings; here dates are strings, too.
Duplicate keys, unknown tags and more than a few aliases (fifty can expand to gigabytes) are refused.
"""

import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.constructor import DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent

from seal_lib import paths
from seal_lib.errors import ParameterError

_MAX_BYTES = 2**18  # most bytes of a file; the largest that ships has 19 000
ALIASES = 20  # most aliases of a file; nested, 20 of them make about 1500 copies


class _Composer(Composer):
    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.aliases += self.parser.check_event(AliasEvent)
        if self.aliases > ALIASES:
            mark = self.parser.peek_event().start_mark
            raise ComposerError(None, None, f"more than {ALIASES} aliases, write the values out", mark)
        return super().compose_node(parent, index)


class _Constructor(SafeConstructor):
    pass


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def parse(text: str) -> Any:
    """Return the content of one YAML document, or None if it is empty.

    Raises:
        ValueError: says what is wrong and, if known, in which line, as ``line 3: …``.
    """
    reader = YAML(typ="safe", pure=True)
    reader.Composer, reader.Constructor = _Composer, _Constructor
    try:
        return reader.load(text)
    except DuplicateKeyError as error:
        key = re.search(r'key "(.*?)" with', str(error.problem))
        which = f"the key {key[1]!r}" if key else "a key"
        raise ValueError(f"line {error.problem_mark.line + 1}: {which} stands twice; keep one") from error
    except YAMLError as error:
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f"line {mark.line + 1}: " if mark else ""
        said = str(what or getattr(error, "reason", "") or "not YAML").splitlines()[0]
        raise ValueError(f"{line}not YAML ({said}); mend it") from error
    except ValueError as error:  # Python limits the digits of an integer
        raise ValueError("a number has thousands of digits; write a smaller one") from error
    except RecursionError as error:
        raise ValueError("lists in lists, too deep to be read; write it flat") from error
    except Exception as error:  # errors inside the reader, as for `%YAML 1.21`
        raise ValueError(f"not YAML ({' '.join(str(error).split())[:120] or type(error).__name__}); mend it") from error


def read(path: Path) -> Any:
    """Return the content of a YAML file; ParameterError if it is no regular file, too large, not UTF-8 or not YAML."""
    name = paths.short(path)
    if not path.is_file():  # reading a device or a pipe may never end
        raise ParameterError(f"{name} {'is not a file' if path.exists() else 'does not exist'}; give a YAML file.")
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ParameterError(f"{name} has more than {_MAX_BYTES} bytes; that is no file of settings.")
        return parse(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ParameterError(f"{name} is not UTF-8 text (byte {error.start + 1}); save it as UTF-8.") from error
    except ValueError as error:
        if isinstance(error, ParameterError):
            raise
        raise ParameterError(f"{name}: {error}.") from error
    except OSError as error:
        raise ParameterError(f"{name} cannot be read ({error.strerror}).") from error


def text(content: dict) -> str:
    """Return a mapping as YAML in block style."""
    writer, file = YAML(typ="safe", pure=True), io.StringIO()
    writer.default_flow_style = False
    writer.dump(content, file)
    return file.getvalue()
