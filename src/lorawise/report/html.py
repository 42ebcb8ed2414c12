"""What every page shares: escaped templates, one style, plotly's script once, JSON that cannot end its element.

A page fetches nothing from outside and can be moved or mailed as one file.
"""

import json
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lorawise import __version__
from lorawise.report import words


def rendered(template: str, **values: object) -> str:
    """The jinja template with `values`, everything escaped that is not `Markup`."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(words=words, version=__version__)
    return environment.from_string(template).render(**values)


@cache
def resource(name: str, package: str = "lorawise.report") -> str:
    """A text file that lies beside the code of `package`."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def script_json(value: object) -> Markup:
    """JSON that may stand inside a script element."""
    text = json.dumps(value, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "").replace("\u2029", ""))


@cache
def plotly_script() -> Markup:
    from plotly.offline import get_plotlyjs

    return Markup(str(get_plotlyjs()).replace("</script", "<\\/script"))
