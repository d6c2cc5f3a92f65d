"""The command line: exit codes, one line of complaint, and the curves."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jaxcnn import UserError, __version__, cli
from jaxcnn.commands import plot


def exit_code(*argv: str) -> int:
    """What the shell sees, argparse's own exit included."""
    try:
        return cli.main(list(argv))
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Any:
    """`complaint(*argv)`: the one line on stderr with which a command is refused."""

    def refused(*argv: str) -> str:
        assert exit_code(*argv) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("jaxcnn: ")
        assert err.count("\n") == 1
        return err

    return refused


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_lists_every_command(word, capsys):
    assert exit_code(word) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(f"\n  {command} " in out for command in cli.COMMANDS)


def test_without_a_command_the_usage_is_shown_and_it_is_an_error(capsys):
    assert exit_code() == 2
    assert capsys.readouterr().out.startswith("usage: jaxcnn COMMAND")


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_the_version_is_that_of_the_package(word, capsys):
    assert exit_code(word) == 0
    assert capsys.readouterr().out == f"jaxcnn {__version__}\n"


def test_an_unknown_command_names_those_there_are(complaint):
    message = complaint("trian")
    assert "'trian'" in message
    assert all(command in message for command in cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_and_refuses_an_unknown_argument(command, capsys, complaint):
    assert exit_code(command, "--help") == 0
    assert f"usage: jaxcnn {command}" in capsys.readouterr().out
    assert f"see `jaxcnn {command} --help`" in complaint(command, "--nonsense")


def test_an_argument_that_is_neither_known_nor_of_the_config_is_refused(capsys):
    assert exit_code("train", "--config", "a.py", "--workdir", "b", "--confg.seed=1") == 2
    assert "unknown argument --confg.seed=1" in capsys.readouterr().err
    assert exit_code("train", "--config", "a.py", "--workdir", "b", "--config.seed") == 2
    assert "--config.seed=VALUE" in capsys.readouterr().err


def test_a_users_error_is_one_line_without_a_traceback(complaint, tmp_path):
    assert complaint("plot", str(tmp_path / "none")) == (
        f"jaxcnn: {tmp_path}/none holds no metrics.jsonl with a line in it: is it the folder of a run?\n"
    )


def test_an_error_of_many_lines_is_joined_into_one(complaint, monkeypatch):
    def main(argv: list[str]) -> int:
        raise UserError("first\n  second\tthird\n")

    monkeypatch.setattr(plot, "main", main)
    assert complaint("plot") == "jaxcnn: first second third\n"


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_shows_the_traceback_wherever_it_stands(place, capsys, tmp_path):
    argv = ["plot", str(tmp_path / "none")]
    assert exit_code(*argv[:place], "--debug", *argv[place:]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "UserError" in err
    assert err.splitlines()[-1].startswith("jaxcnn: ")


def test_a_file_that_cannot_be_written_is_named(complaint, tmp_path):
    (tmp_path / "file").write_text("")
    run(tmp_path / "one", [LINES[0]])
    assert f"{tmp_path}/file" in complaint("plot", str(tmp_path / "one"), "--out", str(tmp_path / "file" / "a.png"))


def test_a_fault_of_ours_is_not_swallowed(monkeypatch):
    def main(argv: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(plot, "main", main)
    with pytest.raises(ZeroDivisionError):
        cli.main(["plot"])


def test_the_shell_sees_the_exit_code():
    done = subprocess.run([sys.executable, "-m", "jaxcnn.cli", "nothing"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("jaxcnn: ")


def test_a_reader_that_stops_early_is_no_error(monkeypatch):
    statement = (
        "import sys; from jaxcnn import cli; from jaxcnn.commands import plot\n"
        "plot.main = lambda argv: [print('x' * 999, flush=True) for _ in range(9999)] and 0\n"
        "sys.exit(cli.main(['plot']))"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", statement], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


# plot

LINES = [
    {"step": 10, "epoch": 1.0, "train/loss": 2.0, "train/top1": 0.25},
    {"step": 10, "epoch": 1.0, "eval/loss": 1.5, "eval/top1": 0.5, "eval/top5": 0.9, "eval/examples": 100},
    {"step": 20, "epoch": 2.0, "eval/loss": 0.5, "eval/top1": 0.9, "eval/top5": 1.0, "eval/examples": 100},
    {"step": 1030, "epoch": 103.0, "eval/loss": 0.7, "eval/top1": 0.8125, "eval/top5": 1.0, "eval/examples": 100},
]


def run(workdir: Path, lines: list[dict[str, Any]], tail: str = "") -> str:
    """The folder of a run that logged `lines`."""
    workdir.mkdir(parents=True)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return str(workdir)


def test_plot_draws_a_png_and_tells_the_best_and_the_last_score(tmp_path, capsys):
    out = tmp_path / "new" / "folder" / "curves.png"
    assert exit_code("plot", run(tmp_path / "mine", LINES), "--out", str(out)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "mine  best top-1 90.00% at step 20, last 81.25% at step 1,030",
        f"curves: {out}",
    ]
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10


def test_plot_tells_runs_apart_and_lines_them_up(tmp_path, capsys):
    folders = run(tmp_path / "a" / "run", LINES), run(tmp_path / "b" / "run", LINES[:1]), run(tmp_path / "c", LINES[:2])
    assert exit_code("plot", *folders, "--out", str(tmp_path / "curves.png")) == 0
    first, second, third, _ = capsys.readouterr().out.splitlines()
    assert first.split()[0] == "run"
    assert second.split()[0] == folders[1]
    assert second.endswith("not evaluated yet")
    assert third.endswith("best top-1 50.00% at step 10, last 50.00% at step 10")
    assert len({first.index("best"), second.index("not"), third.index("best")}) == 1


def test_plot_takes_a_folder_given_twice_once(tmp_path, capsys):
    folder = run(tmp_path / "mine", LINES)
    assert exit_code("plot", folder, folder, f"{folder}/.", "--out", str(tmp_path / "curves.png")) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_plot_draws_what_the_runs_hold(tmp_path):
    pictures = []
    for name, lines in {"one": LINES, "other": LINES[:3], "same": LINES}.items():
        out = tmp_path / f"{name}.png"
        assert exit_code("plot", run(tmp_path / name / "run", lines), "--out", str(out)) == 0
        pictures.append(Image.open(out).tobytes())
    assert pictures[0] == pictures[2] != pictures[1]


def test_plot_leaves_out_a_last_line_cut_short(tmp_path, capsys):
    folder = run(tmp_path / "mine", LINES[:3], tail='{"step": 30, "eval/top1": 0.9')
    assert exit_code("plot", folder, "--out", str(tmp_path / "a.png")) == 0
    assert "last 90.00% at step 20" in capsys.readouterr().out


def test_plot_refuses_a_folder_that_is_no_run_and_draws_nothing(tmp_path, complaint):
    out = tmp_path / "curves.png"
    folders = run(tmp_path / "mine", LINES), run(tmp_path / "empty", [])
    assert folders[1] in complaint("plot", *folders, "--out", str(out))
    assert not out.exists()


def test_plot_without_a_folder_is_wrong_use(capsys):
    assert exit_code("plot") == 2
    assert "DIR" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "start"), [("curves", b"\x89PNG"), ("c.jpg", b"\xff\xd8"), ("c.pdf", b"%PDF")])
def test_plot_writes_the_format_of_the_ending_under_the_very_name_it_is_given(name, start, tmp_path):
    assert exit_code("plot", run(tmp_path / "mine", LINES), "--out", str(tmp_path / name)) == 0
    assert (tmp_path / name).read_bytes().startswith(start)


def test_plot_refuses_an_ending_that_is_no_picture(tmp_path, complaint):
    assert "curves.pgn" in complaint("plot", run(tmp_path / "mine", LINES), "--out", str(tmp_path / "curves.pgn"))


def test_what_a_file_calls_itself_cannot_move_the_cursor(complaint, monkeypatch):
    def refuse(argv: list[str]) -> int:
        raise UserError("extra (1): a\x1b[31m\nb")

    monkeypatch.setattr(plot, "main", refuse)
    assert complaint("plot") == "jaxcnn: extra (1): a?[31m b\n"


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_help_shows_a_commands_own_options_before_those_of_several_processes(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    _, usage, own, hosts, *_ = re.split("usage:|\noptions:|\nseveral processes:", capsys.readouterr().out)
    assert "--workdir" in own
    assert "--coordinator" in hosts
    assert usage.index("--workdir") < usage.index("--coordinator")
    assert "--coordinator" not in own
