"""Models: named by content, safe files only, one verified local copy."""

import json
import multiprocessing
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from madpo.errors import CorruptObjectError, InvalidArgumentError, NotFoundError
from madpo.storage.local import LocalStore
from madpo.storage.models import ModelStore, model_kind
from tests.damage import flip

CAUSAL = {"architectures": ["LlamaForCausalLM"]}
REWARD = {"architectures": ["LlamaForSequenceClassification"]}
ADAPTER = {"task_type": "CAUSAL_LM", "peft_type": "LORA"}


def safetensors(header: Any = None, data: bytes = b"\0" * 8) -> bytes:
    if header is None:
        header = {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        }
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def make_model(directory: Path, *, config: dict[str, Any] = CAUSAL, name: str = "config.json") -> Path:
    directory.mkdir()
    (directory / name).write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes(safetensors())
    (directory / "tokenizer.json").write_text("{}")
    return directory


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def models(store: LocalStore, tmp_path: Path) -> ModelStore:
    return ModelStore(store, tmp_path / "cache")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_model(tmp_path / "source")


def publish(models: ModelStore, directory: Path, **changes: Any) -> Any:
    return models.publish(directory, **{"display_name": "tiny", "kind": "causal_lm", **changes})


def test_a_model_is_described_by_its_files_and_metadata(models: ModelStore, directory: Path) -> None:
    model, created = publish(models, directory, metadata={"step": 3, "score": {"mean": 0.5}})

    assert created
    assert models.get(model.model_id) == model
    assert (model.kind, model.architecture, model.base_model_id) == ("causal_lm", "LlamaForCausalLM", None)
    assert [file.path for file in model.files] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert model.metadata == {"step": 3, "score": {"mean": 0.5}}
    assert model.size_bytes == sum(path.stat().st_size for path in directory.iterdir())


def test_the_same_files_are_one_model(models: ModelStore, directory: Path) -> None:
    first, _ = publish(models, directory)

    assert publish(models, directory, display_name="other") == (first, False)


def test_the_local_copy_is_made_once(models: ModelStore, directory: Path, store: LocalStore) -> None:
    model, _ = publish(models, directory)

    copy = models.fetch(model.model_id)
    store.delete(f"models/{model.model_id}/model.safetensors")

    assert models.fetch(model.model_id) == copy
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
        path.name: path.read_bytes() for path in directory.iterdir()
    }


def test_processes_fetching_at_once_share_one_copy(models: ModelStore, directory: Path, tmp_path: Path) -> None:
    model, _ = publish(models, directory)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=models.fetch, args=(model.model_id,)) for _ in range(4)]

    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0] * 4
    visible = [path.name for path in (tmp_path / "cache/models").iterdir() if not path.name.startswith(".")]
    assert visible == [model.model_id]


def test_a_copy_left_unfinished_is_started_again(models: ModelStore, directory: Path, tmp_path: Path) -> None:
    model, _ = publish(models, directory)
    unfinished = tmp_path / "cache/models" / f".{model.model_id}.partial"
    unfinished.mkdir(parents=True)
    (unfinished / "config.json").write_text("half")

    assert model_kind(models.fetch(model.model_id)) == ("causal_lm", "LlamaForCausalLM")


def test_publishing_again_repairs_a_model_whose_weights_are_damaged(
    models: ModelStore, directory: Path, store: LocalStore
) -> None:
    model, _ = publish(models, directory)
    key = f"models/{model.model_id}/model.safetensors"
    intact = store.get(key)
    store.put(key, flip(intact))

    again, created = publish(models, directory)

    assert (again.model_id, created) == (model.model_id, False)
    assert store.get(key) == intact


@pytest.mark.promise("T3")
def test_a_corrupt_model_is_never_cached(
    models: ModelStore, directory: Path, store: LocalStore, tmp_path: Path
) -> None:
    model, _ = publish(models, directory)
    key = f"models/{model.model_id}/model.safetensors"
    intact = store.get(key)
    store.put(key, intact[:-1] + b"\1")

    with pytest.raises(CorruptObjectError, match=key):
        models.fetch(model.model_id)
    store.put(key, intact)

    assert (models.fetch(model.model_id) / "model.safetensors").read_bytes() == intact


def test_a_file_can_be_streamed(models: ModelStore, directory: Path) -> None:
    model, _ = publish(models, directory)

    with models.open_file(model.model_id, "config.json") as stream:
        assert json.load(stream) == CAUSAL
    with pytest.raises(NotFoundError, match="other"), models.open_file(model.model_id, "other"):
        pass


def test_models_are_listed_newest_first(models: ModelStore, directory: Path, tmp_path: Path) -> None:
    first, _ = publish(models, directory)
    second, _ = publish(models, make_model(tmp_path / "reward", config=REWARD), kind="reward")

    assert models.list(page_size=10) == ([second, first], "")


def test_unknown_models_are_not_found(models: ModelStore) -> None:
    with pytest.raises(NotFoundError, match="no model model-0"):
        models.get("model-0")
    with pytest.raises(NotFoundError, match="no model model-0"):
        models.fetch("model-0")
    with pytest.raises(InvalidArgumentError, match="cannot be stored"):
        models.fetch("../../etc")


def test_an_adapter_belongs_to_a_base(models: ModelStore, directory: Path, tmp_path: Path) -> None:
    base, _ = publish(models, directory)
    directory = make_model(tmp_path / "adapter", config=ADAPTER, name="adapter_config.json")
    (directory / "model.safetensors").rename(directory / "adapter_model.safetensors")

    adapter, _ = publish(models, directory, base_model_id=base.model_id)

    assert (adapter.kind, adapter.architecture, adapter.base_model_id) == ("causal_lm", "LORA", base.model_id)
    with pytest.raises(InvalidArgumentError, match="needs base_model_id"):
        publish(models, directory)
    with pytest.raises(NotFoundError, match="model-0"):
        publish(models, directory, base_model_id="model-0")
    with pytest.raises(InvalidArgumentError, match="is an adapter"):
        publish(models, directory, base_model_id=adapter.model_id)


@pytest.mark.promise("H5")
@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.pt", "x.pth", "x.pkl", "x.ckpt", "modeling_x.py", "x.h5", "x.msgpack", "run.sh", "x"],
)
def test_unsafe_files_are_refused_by_name(models: ModelStore, store: LocalStore, directory: Path, name: str) -> None:
    (directory / "sub").mkdir()
    (directory / "sub" / name).write_bytes(b"")

    with pytest.raises(InvalidArgumentError, match=name) as caught:
        publish(models, directory)
    assert [violation.field for violation in caught.value.violations] == [f"files.sub/{name}"]
    assert list(store.list("")) == []


def test_symbolic_links_are_refused(models: ModelStore, directory: Path) -> None:
    (directory / "extra.json").symlink_to("/etc/hostname")

    with pytest.raises(InvalidArgumentError, match=r"extra\.json: not a regular file"):
        publish(models, directory)


TENSOR = {"dtype": "F32", "shape": [1]}


@pytest.mark.promise("H5")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 1 << 63) + b"{}",
        struct.pack("<Q", 17 << 20) + b" " * (17 << 20),
        struct.pack("<Q", 100) + b"{}",
        safetensors(b"not json"),
        safetensors(b"[1]"),
        safetensors(b"[" * 100_000),
        safetensors({"a": {"dtype": "F32"}}),
        safetensors({"a": {**TENSOR, "data_offsets": [0]}}),
        safetensors({"a": {**TENSOR, "data_offsets": [-4, 8]}}),
        safetensors({"a": {**TENSOR, "data_offsets": [8, 0]}}),
        safetensors({"a": {**TENSOR, "data_offsets": [0, 1 << 62]}}),
        safetensors({"a": {**TENSOR, "data_offsets": [0, 4]}}),
        safetensors({"a": {**TENSOR, "data_offsets": [0, 6]}, "b": {**TENSOR, "data_offsets": [4, 8]}}),
        safetensors({"a": {**TENSOR, "data_offsets": [0, 2]}, "b": {**TENSOR, "data_offsets": [4, 8]}}),
    ],
)
def test_broken_safetensors_are_refused(models: ModelStore, directory: Path, data: bytes) -> None:
    (directory / "model.safetensors").write_bytes(data)

    with pytest.raises(InvalidArgumentError, match=r"files\.model\.safetensors: safetensors"):
        publish(models, directory)


def test_real_safetensors_are_accepted(models: ModelStore, directory: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}, directory / "model.safetensors")

    assert publish(models, directory)[1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda directory: (directory / "model.safetensors").unlink(), r"no \.safetensors file"),
        (lambda directory: (directory / "config.json").unlink(), "no config.json"),
        (lambda directory: (directory / "config.json").write_text("{"), "not JSON"),
        (lambda directory: (directory / "config.json").write_text("[]"), "not a JSON object"),
        (lambda directory: (directory / "config.json").write_text("{}"), "got None"),
        (lambda directory: (directory / "config.json").write_text('{"architectures": ["BertModel"]}'), "BertModel"),
        (lambda directory: (directory / "config.json").write_text(json.dumps(REWARD)), "expected causal_lm"),
    ],
)
def test_a_wrong_configuration_is_explained(
    models: ModelStore, directory: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(directory)

    with pytest.raises(InvalidArgumentError, match=message):
        publish(models, directory)


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("config.json", CAUSAL, ("causal_lm", "LlamaForCausalLM")),
        ("config.json", {"architectures": ["GPT2LMHeadModel"]}, ("causal_lm", "GPT2LMHeadModel")),
        ("config.json", REWARD, ("reward", "LlamaForSequenceClassification")),
        ("adapter_config.json", ADAPTER, ("causal_lm", "LORA")),
        ("adapter_config.json", {"task_type": "SEQ_CLS", "peft_type": "LORA"}, ("reward", "LORA")),
    ],
)
def test_the_kind_comes_from_the_configuration(
    tmp_path: Path, name: str, config: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert model_kind(make_model(tmp_path / "model", config=config, name=name)) == expected
