"""`daguerre batch`: rows to files whose names and bytes depend only on the row, its request and the model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import daguerre
from daguerre.cli.fleet import Fleet
from daguerre.cli.options import PipelineOptions
from daguerre.cli.rows import read_table
from daguerre.errors import DaguerreError
from daguerre.pipelines import Request
from daguerre.pipelines.metadata.write import read_provenance
from daguerre.share import parse_shard

BASE = ("--out=results", "--steps=1", "--size=32", "--threads=1")
PROMPTS = ["a red apple", "a blue cube, glossy", "a cat", ""]


@pytest.fixture
def table(run) -> Path:
    lines = ["id,prompt,seed,steps", *(f'row-{i},"{prompt}",{i},{"2" if i == 1 else ""}' for i, prompt in enumerate(PROMPTS))]
    path = Path("prompts.csv")
    path.write_text("\n".join(lines) + "\n")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def index(folder: Path = Path("results")) -> list[dict]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def test_each_row_gets_its_image(run, table):
    code, out, err = run("batch", str(table), *BASE)
    assert (code, out) == (0, "results/index.jsonl\n"), err
    lines = index()
    assert [line["prompt"] for line in lines] == PROMPTS
    assert [line["id"] for line in lines] == [f"row-{i}" for i in range(4)]
    for i, line in enumerate(lines):
        image, provenance = read_provenance(Path("results") / line["file"])
        request = provenance.request
        assert image.size == (32, 32)
        assert (request.prompt, request.seed, request.steps) == (PROMPTS[i], i, 2 if i == 1 else 1)
    code, _, err = run("txt2img", "a cat", "--seed=2", "--steps=1", "--size=32", "--threads=1", "--out=alone.png")
    assert code == 0, err
    assert list(Image.open("alone.png").getdata()) == list(Image.open(Path("results") / lines[2]["file"]).getdata())


def test_shards_and_repeated_runs_end_with_the_bytes_of_one_run(run, table):
    assert run("batch", str(table), *BASE)[0] == 0
    whole = contents(Path("results"))
    for shard in ("1/2", "0/2"):
        assert run("batch", str(table), "--out=parts", *BASE[1:], "--shard", shard)[0] == 0
    assert contents(Path("parts")) == whole
    lost = index()[3]["file"]
    Path("parts", lost).unlink()
    Path("parts/index.jsonl").unlink()
    _, _, err = run("batch", str(table), "--out=parts", *BASE[1:])
    assert "1 rows generated, 3 were there" in err
    assert contents(Path("parts")) == whole


def test_another_setting_or_id_gets_another_file_and_a_moved_row_keeps_its_own(run):
    Path("a.jsonl").write_text('{"id": "x", "prompt": "a cat"}\n{"id": 7, "prompt": "a cat"}\n')
    Path("b.jsonl").write_text('{"id": 7, "prompt": "a cat"}\n')
    for table, more in (("a.jsonl", ()), ("b.jsonl", ()), ("b.jsonl", ("--steps=2",)), ("b.jsonl", ("--dtype=bfloat16",))):
        assert run("batch", table, *BASE, *more)[0] == 0
    assert len(list(Path("results").glob("*/*.png"))) == 4


def test_several_images_a_row(run):
    Path("a.csv").write_text("prompt,num_images\na cat,2\na dog,\n")
    assert run("batch", "a.csv", *BASE)[0] == 0
    assert [(line["row"], line["seed"]) for line in index()] == [(1, 0), (1, 1), (2, 0)]


def test_failed_rows_are_listed_and_the_others_are_generated(run):
    Path("a.jsonl").write_text(
        '{"prompt": "a cat", "steps": "many"}\n{"prompt": "a dog"}\n{"prompt"\n{"prompt": "x", "sampler": "eulr"}\n[1]\n'
    )
    code, out, err = run("batch", "a.jsonl", *BASE)
    assert (code, out) == (1, "results/index.jsonl\n")
    assert "4 of 5 rows failed; 'results/failed.jsonl' says why" in err
    failed = [json.loads(line) for line in Path("results/failed.jsonl").read_text().splitlines()]
    assert [line["row"] for line in failed] == [1, 3, 4, 5]
    for line, message in zip(failed, ("steps is 'many'", "no JSON", "Did you mean 'euler'", "no JSON object"), strict=True):
        assert message in line["error"]
    assert [line["row"] for line in index()] == [2]
    Path("a.jsonl").write_text('{"prompt": "a cat"}\n{"prompt": "a dog"}\n')
    assert run("batch", "a.jsonl", *BASE)[0] == 0
    assert not Path("results/failed.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.csv", None, "No such file"),
        ("a.txt", "a cat", "ends in .csv, .jsonl, .parquet"),
        ("a.csv", "", "no rows with a column 'prompt'"),
        ("a.csv", "text\na cat\n", "its columns are text"),
        ("a.csv", "prompt,guidence_scale\na cat,2\n", "Did you mean 'guidance_scale'? Rename or remove it"),
        ("a.csv", "id,prompt\nx,a\ny,b\nx,c\n", "The rows 1 and 3 of 'a.csv' have the same id 'x'"),
        ("a.parquet", "no parquet", "a.parquet"),
    ],
)
def test_a_table_that_cannot_be_used_stops_before_the_work(run, name, text, message):
    if text is not None:
        Path(name).write_text(text)
    code, out, err = run("batch", name, *BASE)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not Path("results").exists()


def test_columns_that_no_request_has_are_named(run):
    Path("a.csv").write_text("prompt,url\na cat,x\n")
    code, _, err = run("batch", "a.csv", *BASE)
    assert code == 0
    assert "columns that are not used: url" in err


def test_a_folder_that_cannot_be_written_stops_the_run(run, table, monkeypatch):
    Path("results").mkdir()
    for prefix in range(256):
        Path(f"results/{prefix:02x}").write_text("")  # where a folder belongs
    code, _, err = run("batch", str(table), *BASE)
    assert code == 1
    assert "Cannot write" in err
    assert not Path("results/index.jsonl").exists()


def test_parquet_and_json_lines_have_the_same_rows(tmp_path: Path):
    from pyarrow import parquet, table

    rows = [{"id": "a", "prompt": "a cat", "seed": 3}, {"id": "b", "prompt": "ein Hörnchen", "seed": None}]
    parquet.write_table(table({name: [row[name] for row in rows] for name in rows[0]}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_table(tmp_path / "a.parquet") == read_table(tmp_path / "a.jsonl")


def test_shards_cover_all_rows_once():
    assert [parse_shard(f"{i}/3") for i in range(3)] == [(0, 3), (1, 3), (2, 3)]
    with pytest.raises(DaguerreError, match="--shard is '3/3'"):
        parse_shard("3/3")


PROGRAM = "import sys; from daguerre.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.long
def test_a_killed_run_ends_with_the_same_bytes(run, folder):
    Path("many.csv").write_text("prompt,seed\n" + "".join(f"a cat,{i}\n" for i in range(24)))
    arguments = ["many.csv", f"--model={folder}", "--steps=8", "--size=64", "--threads=1"]
    assert run("batch", *arguments, "--out=whole")[0] == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(daguerre.__file__).parents[1])}
    line = [sys.executable, "-c", PROGRAM, "batch", *arguments, "--out=killed"]
    for seen in (1, 12):
        process = subprocess.Popen(line, env=environment, start_new_session=True)
        deadline = time.monotonic() + 120
        while len(list(Path("killed").glob("*/*.png"))) < seen and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run(line, env=environment, timeout=300, check=False).returncode == 0
    assert contents(Path("killed")) == contents(Path("whole"))


def test_the_name_does_not_depend_on_where_the_model_lies(folder, tmp_path: Path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a cat"}')
    row = read_table(tmp_path / "a.jsonl").rows[0]
    fleets = [Fleet(PipelineOptions(model=str(path)), Request(), tmp_path) for path in (folder, copy)]
    assert len({tuple(fleet.files(row, fleet.request(row))) for fleet in fleets}) == 1
