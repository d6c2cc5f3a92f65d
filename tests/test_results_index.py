"""The index of recorded runs is what its command writes, and each command in it can be read."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

from jaxcnn.configfile import from_json, load_config

ROOT = Path(__file__).parents[1]
INDEX = ROOT / "experiments" / "README.md"


def test_the_index_is_what_its_command_writes_of_the_records_there_are(tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "results" / "index.py"), str(tmp_path / "index.md")]
    subprocess.run(command, cwd=ROOT, check=True)
    again = "run `python experiments/results/index.py`"
    assert (tmp_path / "index.md").read_text() == INDEX.read_text(), again


def test_the_page_about_camvid_is_what_its_command_writes_of_its_records():
    module = runpy.run_path(str(ROOT / "experiments" / "camvid" / "report.py"))
    again = "run `python experiments/camvid/report.py`"
    assert module["page"]() == (ROOT / "experiments" / "results" / "camvid" / "README.md").read_text(), again


def test_the_table_of_fused_norms_is_what_its_command_writes_of_its_record():
    printed = subprocess.run(
        [sys.executable, "experiments/scaling/fused_norm.py"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert printed in (ROOT / "experiments" / "results" / "fused-norm.md").read_text()


def test_every_record_has_a_row_and_every_row_a_command_and_a_link_that_is_there():
    rows = [line for line in INDEX.read_text().splitlines() if line.startswith("| [")]
    links = [match[1] for row in rows if (match := re.search(r"\]\(([^)]*)\)", row))]
    records = {path.relative_to(INDEX.parent) for path in (INDEX.parent / "results").rglob("*")}
    records = {str(path) for path in records if path.name == "result.json" or path.suffix == ".md"}
    assert {*links} == {record for record in records if Path(record).name != "README.md"}
    assert len(links) == len(rows)
    assert all(re.search(r"\| `[^`]+` \|$", row) for row in rows)


def test_the_configs_of_the_commands_are_valid_today():
    commands = re.findall(r"`jaxcnn train (--config|--config-json) (\S+) ", INDEX.read_text())
    assert commands
    for option, file in commands:
        (load_config if option == "--config" else from_json)(ROOT / file)
