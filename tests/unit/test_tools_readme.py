"""The README of the tools service says what the code does."""

import re
from pathlib import Path

from services.tools.modules import load_tools
from services.tools.settings import ToolsSettings
from services.tools.tools_file import read_tools_file

README = (Path(__file__).parents[2] / "services" / "tools" / "README.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found, f"no {language} block"
    return found[1]


def test_the_table_of_settings_is_the_settings_own() -> None:
    own = {
        f"TURNLOG_{name.upper()}": (field.default, field.description)
        for name, field in ToolsSettings.model_fields.items()
        if name.startswith("tools_")
    }
    rows = re.findall(r"^\| `(TURNLOG_TOOLS_\w+)` \| (.*?) \| (.*?) \|$", README, re.MULTILINE)
    written = {name: (default.strip("`"), text) for name, default, text in rows}
    assert written.keys() == own.keys()
    for name, (default, description) in own.items():
        shown = "unset" if default is None else str(default).removesuffix(".0")
        assert written[name] == (shown, description)


def test_the_tool_of_the_readme_works(tmp_path: Path) -> None:
    file = tmp_path / "shop_tools.py"
    file.write_text(block("python"))
    (order,) = load_tools(str(file))
    assert order.spec.parameters["properties"] == {
        "item": {"type": "string", "description": "its number in the catalogue"},
        "count": {"type": "integer", "default": 1, "description": "how many"},
    }


def test_the_file_of_the_readme_is_read(tmp_path: Path) -> None:
    file = tmp_path / "tools.yaml"
    file.write_text(block("yaml"))
    found, _ = read_tools_file(file, {"SHOP_TOKEN": "a", "FILES_TOKEN": "b", "TICKETS_TOKEN": "c"})
    assert [entry.name for entry in (*found.http, *found.mcp)] == ["get_order", "files", "tickets"]
