"""What goes into an artifact: files, requirements, a name and a version, and none of it imported."""

from __future__ import annotations

from pathlib import Path

import pytest
from deploy_wheels import make_wheel

from callboard.actors.tools.deploy.archive import decode_manifest, encode_manifest
from callboard.actors.tools.deploy.gather import gather
from callboard.actors.tools.deploy.versions import release_fits
from callboard.runtime.errors import CallboardError, ConfigError, UsageError

SCRIPT = """# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "pillow>=10",
#   "tiny",
# ]
# [tool.callboard]
# name = "pictures"
# ///
raise SystemExit("nobody imports this here")
"""

PROJECT = """
[project]
name = "weather-tools"
version = "2.1"
requires-python = ">=3.11,<4"
dependencies = ["tiny>=1"]
[project.entry-points."callboard.tools"]
weather = "weather_tools.tools:TOOLS"
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_script_says_all_in_its_block_of_comments(tmp_path: Path) -> None:
    manifest = gather(write(tmp_path / "my_tools.py", SCRIPT)).manifest
    assert (manifest.name, manifest.entry, manifest.python) == ("pictures", "my_tools.py", ">=3.11")
    assert manifest.requirements == ("pillow>=10", "tiny")
    assert [file.path for file in manifest.files] == ["my_tools.py"]
    assert decode_manifest(encode_manifest(manifest)) == manifest


def test_a_version_that_nobody_gave_is_made_of_the_content(tmp_path: Path) -> None:
    file = write(tmp_path / "my tools.py", "x = 1\n")
    first = gather(file).manifest
    assert first.name == "my-tools"
    assert gather(file).manifest == first
    more = write(tmp_path / "requirements.txt", "tiny==1\n")
    assert gather(file, requirements=more).manifest.version != first.version
    write(file, "x = 2\n")
    assert gather(file).manifest.version != first.version
    assert gather(file, name="n", version="1.0").manifest.version == "1.0"


def test_windows_line_ends_and_no_block_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_bytes(SCRIPT.replace("\n", "\r\n").encode())
    assert gather(file).manifest.requirements == ("pillow>=10", "tiny")
    assert gather(write(tmp_path / "b.py", "# plain\n")).manifest.requirements == ()


def test_a_file_of_requirements_comes_on_top(tmp_path: Path) -> None:
    more = write(
        tmp_path / "r.txt", "# about\n\nTiny == 1.0  # why\nother \\\n  --hash=sha256:00\nname @ https://x/#y\n"
    )
    lines = gather(write(tmp_path / "my_tools.py", SCRIPT), requirements=more).manifest.requirements
    assert lines == ("pillow>=10", "tiny", "Tiny == 1.0", "other    --hash=sha256:00", "name @ https://x/#y")


@pytest.mark.parametrize("line", ["--index-url http://x", "-e .", "-r more.txt"])
def test_where_packages_come_from_is_the_nodes_to_say(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match="is an option"):
        gather(write(tmp_path / "a.py", ""), requirements=write(tmp_path / "r.txt", line))


def test_a_wheel_on_this_disk_goes_along(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "wheels", "tiny", "1.0", {"tiny.py": "N = 1\n"})
    for line in ("./wheels/" + wheel.name, str(wheel), f"tiny @ {wheel.as_uri()}"):
        found = gather(write(tmp_path / "a.py", ""), requirements=write(tmp_path / "r.txt", line))
        assert found.manifest.requirements == (f"./_wheels/{wheel.name}",)
        packed = dict(zip((file.path for file in found.manifest.files), found.contents, strict=True))
        assert packed[f"_wheels/{wheel.name}"] == wheel.read_bytes()
    for line, match in (("./none.whl", "there is no wheel"), ("./wheels", "names no wheel")):
        with pytest.raises(ConfigError, match=match):
            gather(tmp_path / "a.py", requirements=write(tmp_path / "r.txt", line))


@pytest.mark.parametrize("layout", ["", "src/"])
def test_a_package_folder_goes_without_what_is_hidden_or_built(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "weather"
    write(folder / "pyproject.toml", PROJECT)
    write(folder / f"{layout}weather_tools/__init__.py", "")
    program = write(folder / f"{layout}weather_tools/tools.py", "TOOLS = []\n")
    program.chmod(0o755)
    for left in (".env", ".git/config", "build/x.py", f"{layout}weather_tools/__pycache__/tools.pyc", "w.egg-info/PKG"):
        write(folder / left, "secret")
    found = gather(folder)
    manifest = found.manifest
    assert (manifest.name, manifest.version, manifest.entry) == ("weather", "2.1", "weather_tools.tools:TOOLS")
    assert (manifest.source, manifest.python) == (layout.rstrip("/"), ">=3.11,<4")
    inside = [f"{layout}weather_tools/__init__.py", f"{layout}weather_tools/tools.py"]
    assert [file.path for file in manifest.files] == sorted(["pyproject.toml", *inside])
    assert {file.path: file.executable for file in manifest.files}[inside[1]]
    assert b"secret" not in b"".join(found.contents)


def test_a_link_in_a_package_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "pyproject.toml", PROJECT)
    (tmp_path / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match="symbolic link"):
        gather(tmp_path)


def test_of_several_sets_one_is_chosen_by_name(tmp_path: Path) -> None:
    write(tmp_path / "pyproject.toml", PROJECT + 'tides = "weather_tools.tides:TOOLS"\n')
    with pytest.raises(UsageError, match="several sets: tides, weather"):
        gather(tmp_path)
    assert gather(tmp_path, name="tides").manifest.entry == "weather_tools.tides:TOOLS"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("# /// script\n# dependencies = [\n# ///\n", "not valid TOML"),
        ("# /// script\n# dependencies = 5\n# ///\n", "no list of texts"),
        ("# /// script\n# requires-python = 'three'\n# ///\n", "is understood"),
        ("# /// script\n# dependencies = []\n# ///\n\n# /// script\n# ///\n", "2 blocks"),
        ("# /// script\n# tool.callboard.name = 'a b'\n# ///\n", "is no name"),
        ("# /// script\n# dependencies = ['--pre']\n# ///\n", "no requirement"),
    ],
)
def test_what_is_wrong_with_a_script_is_said(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(CallboardError, match=match):
        gather(write(tmp_path / "a.py", text))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[project]\nname='x'\n", "announces no tools"),
        ("[project", "not valid TOML"),
        ("project = 5", "no table"),
        (PROJECT.replace("dependencies", "dynamic = ['dependencies']\nrequires"), "leaves dependencies to its build"),
    ],
)
def test_what_is_wrong_with_a_project_is_said(tmp_path: Path, text: str, match: str) -> None:
    write(tmp_path / "pyproject.toml", text)
    with pytest.raises(CallboardError, match=match):
        gather(tmp_path)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    for path, match in (
        (tmp_path / "none.py", "there is no"),
        (tmp_path, "no pyproject"),
        (tmp_path / "a.txt", "no Py"),
    ):
        if path.suffix == ".txt":
            path.write_text("")
        with pytest.raises(UsageError, match=match):
            gather(path)


@pytest.mark.parametrize(
    ("clauses", "version", "fits"),
    [
        ("", (3, 11, 7), True),
        (">=3.11", (3, 11, 0), True),
        (">=3.12", (3, 11, 9), False),
        (">=3.11,<3.13", (3, 13, 0), False),
        ("<4", (3, 99, 0), True),
        ("==3.11.*", (3, 11, 7), True),
        ("==3.11", (3, 11, 7), False),
        ("!=3.11.*", (3, 11, 7), False),
        ("!=3.11.6", (3, 11, 7), True),
        ("~=3.11", (3, 14, 0), True),
        ("~=3.11.2", (3, 12, 0), False),
        ("~=3.11", (4, 0, 0), False),
        (">3.11", (3, 11, 0), False),
        ("<=3.11", (3, 11, 0), True),
    ],
)
def test_versions_are_compared_as_packages_mean_them(clauses: str, version: tuple[int, int, int], fits: bool) -> None:
    assert release_fits(clauses, version) is fits


@pytest.mark.parametrize("clauses", ["3.11", ">=three", "~=3", ">=3.11.*", "==1.2.3.4", "=>3"])
def test_what_is_no_list_of_versions_is_refused(clauses: str) -> None:
    with pytest.raises(ConfigError):
        release_fits(clauses, (3, 11, 0))
