"""The recipes of docs/corpora.md run as they stand on the page, and their tables are those of a plain loop.

They run in an environment of their own: make test-corpora. Spark and NeMo Curator are stand-ins of a few lines: what is
tested is that our part of these recipes does what they ask for.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from harness.troubled import Model, sound, text_of, write_corpus

from torch_ctc_align.speech.command import main
from torch_ctc_align.speech.command.corpus import build_parser
from torch_ctc_align.speech.corpus import COLUMNS, STATUSES, Align, arrow_schema
from torch_ctc_align.speech.corpus.job import Job
from torch_ctc_align.speech.corpus.local import run_local
from torch_ctc_align.speech.corpus.manifests import open_manifest
from torch_ctc_align.speech.corpus.on_ray import run_ray

ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "data"
PAGE = (ROOT / "docs" / "corpora.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language, heading=None):
    """The blocks of code of a language on the page, or those under a heading."""
    text = PAGE
    if heading is not None:
        (text,) = re.findall(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return [code for kind, code in BLOCK.findall(text) if kind == language]


def recipe(heading):
    (code,) = blocks("py", heading)
    return code


def run(code, **names):
    exec(compile(code, "docs/corpora.md", "exec"), {"__name__": "recipe", **names})


CLIPS = ["sense_and_sensibility_01_austen_64kb-0870", "sense_and_sensibility_01_austen_64kb-0930"]


@pytest.fixture
def clips(tmp_path, monkeypatch, library):
    """Rows id, audio, text: what fails comes first. The files are in the folder in which the test runs."""
    library("soundfile"), library("hama"), library("onnxruntime")
    monkeypatch.chdir(tmp_path)
    for name in CLIPS:
        shutil.copy(DATA / f"{name}.wav", tmp_path)
    texts = [(DATA / f"{name}.txt").read_text() for name in CLIPS]
    Path("broken.wav").write_bytes(b"RIFF")
    return [
        {"id": "gone", "audio": str(tmp_path / "gone.wav"), "text": "Not there."},
        {"id": "broken", "audio": str(tmp_path / "broken.wav"), "text": "No sound."},
        {"id": "first", "audio": str(tmp_path / f"{CLIPS[0]}.wav"), "text": texts[0]},
        {"id": "long", "audio": str(tmp_path / f"{CLIPS[1]}.wav"), "text": texts[0] * 10},
        {"id": "second", "audio": str(tmp_path / f"{CLIPS[1]}.wav"), "text": texts[1]},
    ]


STATUS = {"gone": "unreadable", "broken": "unreadable", "first": "ok", "long": "too_long_text", "second": "ok"}


@pytest.fixture
def table(clips, corpora):
    """The rows as an Arrow table; clips.parquet holds it."""
    pyarrow, parquet = corpora("pyarrow"), corpora("pyarrow.parquet")
    table = pyarrow.Table.from_pylist(clips)
    parquet.write_table(table, "clips.parquet")
    return table


def plain_loop(rows, align=None):
    """The columns of Align by id, from a call for each row."""
    align = align or Align()
    found = {}
    for row in rows:
        done = align({"audio": [row["audio"]], "text": [row["text"]]})
        found[row["id"]] = {name: done[name][0] for name in COLUMNS}
    return found


def check(table, rows, statuses=STATUS, align=None, without=()):
    """A table has the rows of a plain loop, once, with the types of arrow_schema; other columns passed through."""
    expected = plain_loop(rows, align)
    found = {row["id"]: row for row in table.to_pylist()}
    assert len(found) == table.num_rows == len(rows)
    assert {id: row["status"] for id, row in found.items()} == statuses
    assert {id: {name: row[name] for name in COLUMNS} for id, row in found.items()} == expected
    for row in rows:
        assert {name: value for name, value in row.items() if name not in without}.items() <= found[row["id"]].items()
    # Parquet calls the items of a list "element"; the library datasets and Spark may use wider strings.
    types = {field.name: str(field.type).replace("element:", "item:").replace("large_", "") for field in table.schema}
    assert {name: types[name] for name in COLUMNS} == {field.name: str(field.type) for field in arrow_schema()}


# ---- The recipes ----


def test_align_by_itself(clips, capsys):
    (code,) = blocks("py", "Recipes")
    for name, clip in zip("ab", CLIPS, strict=True):
        shutil.copy(f"{clip}.wav", f"{name}.wav")
    run(code.replace("Good evening.", clips[2]["text"].strip()).replace("How are you?", clips[4]["text"].strip()))
    expected = plain_loop([clips[2], clips[4]])
    statuses, words, starts = (
        [expected[id][name] for id in ("first", "second")] for name in ("status", "words", "starts")
    )
    assert capsys.readouterr().out == f"{statuses} {words} {starts}\n"


def test_ray_data(ray, table, clips, corpora, tmp_path):
    """Ray has been started in another folder, so the paths are absolute."""
    code = recipe("Ray Data")
    for name in ("clips.parquet", "aligned"):
        assert code.count(f'"{name}"') == 1
        code = code.replace(f'"{name}"', repr(str(tmp_path / name)))
    run(code)
    check(corpora("pyarrow.parquet").read_table("aligned"), clips)


def test_datasets(table, clips, corpora, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    corpora("datasets").disable_progress_bars()
    run(recipe("datasets"))
    check(corpora("pyarrow.parquet").read_table("aligned.parquet"), clips)


@pytest.fixture
def failures_first(tmp_path, library):
    """Two rows that fail, and two that do not; an Align for them; the statuses."""
    soundfile = library("soundfile")
    rows = [{"id": f"gone-{k}", "audio": "nowhere.wav", "text": "gone"} for k in range(2)]
    for k in range(2):
        soundfile.write(tmp_path / f"{k}.wav", sound(text_of(k)), 1000, subtype="FLOAT")
        rows.append({"id": f"good-{k}", "audio": str(tmp_path / f"{k}.wav"), "text": text_of(k)})
    statuses = {row["id"]: "unreadable" if row["id"].startswith("gone") else "ok" for row in rows}
    return rows, Model(str(tmp_path / "heard")), statuses


@pytest.mark.parametrize("batch_format", ["numpy", "pandas"])
def test_ray_data_in_its_other_formats(ray, failures_first, corpora, tmp_path, batch_format):
    """A file of failures alone has the types of all others; missing numbers are no durations."""
    pyarrow, parquet = corpora("pyarrow"), corpora("pyarrow.parquet")
    rows, model, statuses = failures_first
    rows = [row | {"duration": None} for row in rows]
    (tmp_path / "clips").mkdir()
    schema = pyarrow.schema([(name, pyarrow.string()) for name in ("id", "audio", "text")] +
                            [("duration", pyarrow.float64())])  # fmt: skip
    for k in (0, 2):
        table = pyarrow.Table.from_pylist(rows[k : k + 2], schema)
        parquet.write_table(table, tmp_path / "clips" / f"{k}.parquet")
    aligned = ray.data.read_parquet(str(tmp_path / "clips"), override_num_blocks=2).map_batches(
        Align,
        fn_constructor_args=(model,),
        batch_format=batch_format,
        batch_size=2,
        num_cpus=0.5,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    aligned.write_parquet(str(tmp_path / "aligned"))
    # None is NaN where it came through NumPy.
    check(parquet.read_table(tmp_path / "aligned"), rows, statuses, Align(model), without=("duration",))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_datasets_whose_first_batches_have_failed(failures_first, corpora, batch_size):
    """The types of a column are those of the schema, not those of the first batch."""
    datasets, pyarrow = corpora("datasets"), corpora("pyarrow")
    datasets.disable_progress_bars()
    rows, model, statuses = failures_first
    align = Align(model)
    clips = datasets.Dataset.from_list(rows)
    done = clips.with_format("arrow").map(align, batched=True, batch_size=batch_size)
    check(done.with_format("arrow")[:], rows, statuses, align)
    # The other way that the page names: Python's lists, and the types beforehand.
    schema = pyarrow.schema([*((name, pyarrow.string()) for name in ("id", "audio", "text")), *arrow_schema()])
    features = datasets.Features.from_arrow_schema(schema)
    done = clips.map(align, batched=True, batch_size=batch_size, features=features)
    check(done.with_format("arrow")[:], rows, statuses, align)


def test_datasets_with_processes_and_a_cache(table, clips, corpora, tmp_path, monkeypatch):
    """The model of English in two processes. The name of a cache is the same before and after a call."""
    datasets = corpora("datasets")
    datasets.disable_progress_bars()
    align = Align()
    name = datasets.fingerprint.Hasher.hash(align)
    rows = datasets.Dataset.from_parquet("clips.parquet", cache_dir=str(tmp_path / "cache")).with_format("arrow")
    done = rows.map(align, batched=True, batch_size=2, num_proc=2)
    check(done[:], clips)
    plain_loop(clips[2:3], align)
    assert datasets.fingerprint.Hasher.hash(align) == name == datasets.fingerprint.Hasher.hash(Align())
    assert datasets.fingerprint.Hasher.hash(Align(star="words")) != name


def test_datasets_with_a_column_of_audio(corpora, tmp_path, library):
    """The bytes of a file arrive, with a name beside them that leads nowhere."""
    datasets = corpora("datasets")
    datasets.disable_progress_bars()
    library("soundfile").write(tmp_path / "a.wav", sound("what is said"), 1000, subtype="FLOAT")
    content = (tmp_path / "a.wav").read_bytes()
    clips = datasets.Dataset.from_dict({"audio": [{"path": "b.wav", "bytes": content}], "text": ["what is said"]})
    align = Align(Model(str(tmp_path / "heard")))
    expected = align({"audio": [str(tmp_path / "a.wav")], "text": ["what is said"]})
    assert expected["status"] == ["ok"]
    for column in (
        clips.cast_column("audio", datasets.Audio()).with_format("arrow"),
        clips.cast_column("audio", datasets.Audio(decode=False)),
    ):
        done = column.map(align, batched=True).with_format(None).remove_columns("audio")
        assert {name: done[:][name] for name in COLUMNS} == {name: expected[name] for name in COLUMNS}


def test_torchrun_and_webdataset(clips, corpora, tmp_path):
    """Two processes share three tars. One more run finds all of them done."""
    webdataset, parquet = corpora("webdataset"), corpora("pyarrow.parquet")
    there = [row for row in clips if row["id"] != "gone"]  # a file that is not there is in no tar
    for k, rows in enumerate([there[:2], there[2:3], there[3:]]):
        with webdataset.TarWriter(f"clips-{k:06}.tar") as tar:
            for row in rows:
                content = Path(row["audio"]).read_bytes()
                tar.write({"__key__": row["id"], "wav": content, "txt": row["text"]})
    Path("align_tars.py").write_text(recipe("torchrun and webdataset"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "align_tars.py"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    tables = [parquet.read_table(f"clips-{k:06}.parquet") for k in range(3)]
    assert [table["id"].to_pylist() for table in tables] == [["broken", "first"], ["long"], ["second"]]
    rows = [{**row, "audio": Path(row["audio"]).read_bytes()} for row in there]
    statuses = {id: status for id, status in STATUS.items() if id != "gone"}
    check(corpora("pyarrow").concat_tables(tables), rows, statuses, without=("audio",))
    assert not list(tmp_path.glob("*.growing"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    for rank in range(2):
        environment |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        subprocess.run([sys.executable, "align_tars.py"], env=environment, check=True, timeout=120)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")} == before


def test_lhotse(clips, corpora):
    """Two supervisions of a cut that begins within its recording; times count from the cut's beginning."""
    lhotse = corpora("lhotse")
    recording = lhotse.Recording.from_file(f"{CLIPS[0]}.wav")
    text = clips[2]["text"].split()
    supervisions = [
        lhotse.SupervisionSegment("a", recording.id, start=0.0, duration=3.0, text=" ".join(text[:8])),
        lhotse.SupervisionSegment("b", recording.id, start=3.0, duration=recording.duration - 3.0),
    ]
    cut = lhotse.MonoCut("cut", 0.1, recording.duration - 0.1, 0, supervisions, recording=recording)
    lhotse.CutSet.from_cuts([cut]).to_file("cuts.jsonl.gz")
    run(recipe("Lhotse"))
    (cut,) = lhotse.CutSet.from_file("aligned.jsonl.gz")
    first, second = cut.supervisions
    done = Align()({"audio": [f"{CLIPS[0]}.wav"], "text": [first.text], "offset": [0.1], "duration": [3.0]})
    assert [item.symbol for item in first.alignment["word"]] == done["words"][0] == text[:8]
    # Lhotse writes times with 4 digits; it may cut a piece one sample (1/22050 s) beside ours, or a frame (20 ms).
    assert [item.start + 0.1 for item in first.alignment["word"]] == pytest.approx(done["starts"][0], abs=0.021)
    assert [item.end + 0.1 for item in first.alignment["word"]] == pytest.approx(done["ends"][0], abs=0.021)
    assert second.alignment is None


# ---- Recipes for what pip cannot bring here ----


def test_spark(table, clips, corpora):
    """Spark hands over record batches, two rows each; from Spark's types to Arrow's the map is one to one."""
    pyarrow = corpora("pyarrow")
    asked = []

    class Frame:
        write = types.SimpleNamespace(parquet=lambda path: asked.append(path))

        def select(self, *names):
            asked.append(names)
            return self

        def mapInArrow(self, function, schema):
            batches = list(function(iter(table.to_batches(max_chunksize=2))))
            asked.extend([batches, schema])
            return self

    run(recipe("Spark"), spark=types.SimpleNamespace(read=types.SimpleNamespace(parquet=lambda path: Frame())))
    names, batches, schema, path = asked
    assert path == "aligned"
    assert names == ("id", "audio", "text")
    check(pyarrow.Table.from_batches(batches), clips)
    in_arrow = {
        "string": "string",
        "double": "double",
        "array<string>": "list<string>",
        "array<double>": "list<double>",
        "array<bigint>": "list<int64>",
        "array<struct<start: double, end: double>>": "list<struct<start: double, end: double>>",
    }
    columns = [column.split(" ", 1) for column in re.split(r", (?![^<]*>)", schema)]
    assert {name: in_arrow[kind] for name, kind in columns[3:]} == COLUMNS
    assert [name for name, _ in columns] == [*batches[0].schema.names]


def test_nemo_curator(clips, monkeypatch):
    class ProcessingStage:
        def __class_getitem__(cls, kinds):
            return cls

    class AudioTask:
        def __init__(self, data):
            self.data = data

    for name, content in (
        ("nemo_curator", {}),
        ("nemo_curator.stages", {}),
        ("nemo_curator.stages.base", {"ProcessingStage": ProcessingStage}),
        ("nemo_curator.tasks", {"AudioTask": AudioTask}),
    ):
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    names = types.ModuleType("stage")
    monkeypatch.setitem(sys.modules, "stage", names)  # dataclass looks its class up in a module
    exec(compile(recipe("NeMo Curator"), "docs/corpora.md", "exec"), vars(names))
    stage = names.AlignStage()
    stage.setup()
    tasks = [AudioTask({"audio_filepath": row["audio"], "text": row["text"], "id": row["id"]}) for row in clips]
    assert set(stage.inputs()[1]) <= tasks[0].data.keys()
    done = stage.process_batch(tasks)
    expected = plain_loop(clips)
    assert {task.data["id"]: {name: task.data[name] for name in stage.outputs()[1]} for task in done} == expected
    assert stage.process(AudioTask({"audio_filepath": "gone.wav", "text": "gone"})).data["status"] == "unreadable"


# ---- The page ----


def test_every_recipe_of_the_page_is_run():
    headings = re.findall(r"^### (.+)$", PAGE.partition("\n## Recipes\n")[2], re.MULTILINE)
    assert headings == ["Ray Data", "datasets", "torchrun and webdataset", "Lhotse", "Spark", "NeMo Curator"]
    assert len(blocks("py")) == len(headings) + 1
    assert blocks("python") == []


def table_under(head):
    """The names in the first column of the table whose first column is called so."""
    (rows,) = re.findall(rf"^\| {head} \|.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in rows.splitlines()))


def test_the_tables_of_the_page_have_every_column_and_status():
    columns, statuses = (table_under(head) for head in ("column", "status"))
    assert columns == ["id", "audio", "offset", "duration", *COLUMNS]
    assert statuses == list(STATUSES)


def commands():
    """Every `ctc-align corpus` of the blocks for the shell."""
    lines = re.sub(r"\\\n\s*", "", "".join(blocks("sh"))).splitlines()
    return [shlex.split(line, comments=True) for line in lines if re.search(r"\bctc-align corpus ", line)]


def test_the_commands_of_the_page_are_taken():
    assert len(commands()) > 5
    for words in commands():
        arguments = [word.replace("$SLURM_ARRAY_TASK_ID", "3") for word in words[words.index("corpus") + 1 :]]
        build_parser().parse_args(arguments)


def test_ten_lines_to_the_first_result(clips, tmp_path, monkeypatch, capsys):
    """The block itself, with clips of ours, and the command of this interpreter."""
    block = blocks("sh", "Ten lines to the first result")[0]
    manifest = re.search(r"<<'END'\n(.*?)END\n", block, re.DOTALL)[1]
    Path("manifest.jsonl").write_text(manifest)
    Path("clips").mkdir()
    shutil.copy(clips[4]["audio"], "clips/a.wav")
    assert len([line for line in block.splitlines() if line]) <= 11
    lines = [line for line in block.splitlines() if line.startswith("ctc-align ")]
    first, again, retry = [shlex.split(line, comments=True)[1:] for line in lines]
    assert main(first) == 3  # clips/b.wav is not there
    shown = blocks("text", "Ten lines to the first result")[0]
    rows = [json.loads(line) for line in Path("aligned/part-00000.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["ok", "unreadable"]
    shown = json.loads(shown)
    assert list(rows[0]) == list(shown)
    same = ("id", "audio", "offset", "duration", "words", "starts", "ends", "unexplained", "unspoken", "seconds")
    assert {name: rows[0][name] for name in same} == {name: shown[name] for name in same}
    # Processors may differ in the last bits of a model, and of a sum of some hundred of its values.
    assert rows[0]["score"] == pytest.approx(shown["score"], abs=1e-3)
    assert main(first) == 2  # it would do again what is done
    assert main(again) == 3
    shutil.copy(clips[4]["audio"], "clips/b.wav")
    assert main(retry) == 3  # 3 s of sound have no offset of 12.5 s
    assert "offset is 12.5 s" in Path("aligned/failures.jsonl").read_text()


def test_the_same_table_from_every_engine(ray, corpora, tmp_path, library):
    """Ray's parts, the local engine's, datasets.map and a plain loop."""
    datasets, parquet, pyarrow = corpora("datasets"), corpora("pyarrow.parquet"), corpora("pyarrow")
    datasets.disable_progress_bars()
    statuses = write_corpus(tmp_path, library("soundfile"), trouble=True)
    manifest = open_manifest(tmp_path / "manifest.jsonl", shard_rows=7)
    model = Model(str(tmp_path / "heard"))
    found = {}
    for name, engine in (("ray", run_ray), ("local", run_local)):
        job = Job(manifest, tmp_path / name, "parquet", {"model": model})
        job.begin()
        assert len(list(engine(job, range(3), workers=1))) == 3
        found[name] = [path.read_bytes() for path in sorted(job.out.glob("part-*"))]
    assert found["ray"] == found["local"]
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    rows = [{"id": row["id"], "audio": str(tmp_path / row["audio_filepath"]), "text": row["text"]} for row in rows]
    align = Align(model)
    table = pyarrow.concat_tables([parquet.read_table(path) for path in sorted((tmp_path / "ray").glob("part-*"))])
    check(table, rows, statuses, align, without=("audio", "text"))
    mapped = datasets.Dataset.from_list(rows).with_format("arrow").map(align, batched=True, batch_size=5)
    check(mapped.with_format("arrow")[:], rows, statuses, align)
