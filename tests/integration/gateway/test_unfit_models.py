"""Jobs whose model cannot do what they ask of it: known from its files, and refused by field."""

import asyncio
import json
from typing import Any

import pytest

from madpo_gateway.checks import adapter_layers
from tests.integration.gateway.messages import model_parts, ref, safetensors, tensors
from tests.integration.gateway.service import POLICY_CONFIG, Gateway, Material, make_material, refusal


async def test_no_job_asks_for_more_tokens_than_its_model_reads(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    short = (await gateway.upload_model(POLICY_CONFIG | {"max_position_embeddings": 96}, weights=2)).model.model_id
    model = {"model_id": short}
    first = await gateway.create(
        {"supervised_training": {"model": model, "dataset": ref(ids.completions)}}, "default-length"
    )
    # What is trained from a model reads as much as the model.
    after = {"job_id": first.job_id}
    asked: list[tuple[str, dict[str, Any], str, str]] = [
        (
            "supervised_training",
            {"dataset": ref(ids.completions)},
            ".training.max_tokens",
            "is 97, and the model reads",
        ),
        ("policy_training", {"dataset": ref(ids.pairs), "method": {"name": "dpo"}}, ".training.max_tokens", "96"),
        ("dataset_check", {"dataset": ref(ids.pairs)}, ".max_tokens", "give 96 or less"),
        ("evaluation", {"prompt_dataset": ref(ids.prompts)}, ".sampling.max_new_tokens", "give less than 96"),
    ]
    for kind, spec, field, expected in asked:
        length = {
            "dataset_check": {"max_tokens": 97},
            "evaluation": {"sampling": {"max_new_tokens": 96}},
        }.get(kind, {"training": {"max_tokens": 97}})
        for source in (model, after):
            error = await refusal(gateway.create({kind: {"model": source, **spec, **length}}, "wrong"))
            ((name, description),) = error.violations.items()
            assert name.endswith(field)
            assert expected in description

    kept = [
        await gateway.create(
            {"supervised_training": {"model": source, "dataset": ref(ids.completions)}}, f"job-{number}"
        )
        for number, source in enumerate((model, after))
    ]
    assert [job.spec.supervised_training.training.max_tokens for job in (first, *kept)] == [96, 96, 96]


async def test_no_job_asks_for_a_tokenizer_or_a_template_that_its_model_does_not_have(gateway: Gateway) -> None:
    async def model(**files: bytes) -> dict[str, str]:
        parts = {name.replace("__", "."): data for name, data in files.items()}
        given = {"config.json": json.dumps(POLICY_CONFIG).encode(), "model.safetensors": safetensors(len(files) + 9)}
        uploaded = await gateway.ask(gateway.models.UploadModel, model_parts(given | parts))
        return {"model_id": uploaded.model.model_id}

    ids = await make_material(gateway)
    chat = [{"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "ho"}]}]
    messages = (await gateway.upload_dataset(chat)).dataset.dataset_id
    bare, text = await model(), await model(tokenizer__json=b"{}")
    pieces, words = await model(tokenizer__model=b"x"), await model(vocab__json=b"{}", merges__txt=b"x")
    with_template = [
        await model(tokenizer__json=b"{}", chat_template__jinja=b"{{ messages }}"),
        await model(
            tokenizer__json=b"{}", tokenizer_config__json=b'{"chat_template": "{{ messages }}"}', vocab__txt=b"a"
        ),
    ]

    def training(model: dict[str, str], dataset: str) -> dict[str, Any]:
        return {"supervised_training": {"model": model, "dataset": ref(dataset)}}

    no_tokenizer = await refusal(gateway.create(training(bare, ids.completions), "bare"))
    no_fast_form = await refusal(gateway.create(training(pieces, ids.completions), "pieces"))
    await gateway.create(training(words, ids.completions), "words")
    no_template = await refusal(gateway.create(training(text, messages), "text"))
    after = await gateway.create(training(text, ids.completions), "text-rows")
    evaluation = {"model": {"job_id": after.job_id}, "prompt_dataset": ref(messages)}
    still_none = await refusal(gateway.create({"evaluation": evaluation}, "after"))
    for number, fit in enumerate(with_template):
        await gateway.create(training(fit, messages), f"fit-{number}")

    (said,) = no_tokenizer.violations.values()
    assert "has no tokenizer: upload it with the files of one" in said
    (said_of_pieces,) = no_fast_form.violations.values()
    assert "has no tokenizer.json, the fast form" in said_of_pieces
    for refused in (no_template, still_none):
        (said,) = refused.violations.values()
        assert f"has no chat template, and rows of {messages} are messages" in said


async def test_rows_of_text_ask_for_a_tokenizer_that_ends_them(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    chat = [{"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "ho"}]}]
    messages = (await gateway.upload_dataset(chat)).dataset.dataset_id
    mixed = (await gateway.upload_dataset([*chat, {"prompt": "hi", "completion": "ho"}])).dataset.dataset_id

    async def model(number: int, config: dict[str, Any], **files: bytes) -> dict[str, str]:
        given = {"config.json": json.dumps(POLICY_CONFIG).encode(), "model.safetensors": safetensors(number)}
        given |= {"tokenizer.json": b"{}", "chat_template.jinja": b"{{ messages }}"}
        given |= {name.replace("__", "."): data for name, data in files.items()}
        given["tokenizer_config.json"] = json.dumps(config).encode()
        return {"model_id": (await gateway.ask(gateway.models.UploadModel, model_parts(given))).model.model_id}

    def training(model: dict[str, str], dataset: str) -> dict[str, Any]:
        return {"supervised_training": {"model": model, "dataset": ref(dataset)}}

    plain = {"tokenizer_class": "PreTrainedTokenizerFast"}
    endless, null = await model(1, plain), await model(2, plain | {"eos_token": None})
    for number, (without, dataset) in enumerate(
        [(endless, ids.completions), (null, ids.completions), (endless, mixed)]
    ):
        refused = await refusal(gateway.create(training(without, dataset), f"refused-{number}"))
        (said,) = refused.violations.values()
        row = 2 if dataset == mixed else 1
        assert "a tokenizer without an EOS token, which ends every text" in said
        assert f"rows of {dataset} are text (row {row} is the first): name one of its tokens" in said
    evaluation = {"model": endless, "prompt_dataset": ref(ids.prompts)}
    assert "without an EOS" in str((await refusal(gateway.create({"evaluation": evaluation}, "prompts"))).violations)

    fit = [
        await model(3, plain | {"eos_token": "</s>"}),
        await model(4, plain | {"sep_token": {"content": "[SEP]"}}),
        await model(5, plain, special_tokens_map__json=b'{"eos_token": "</s>"}'),
        await model(6, {"tokenizer_class": "GPT2Tokenizer"}),
        await model(7, {}),
    ]
    for number, ends in enumerate(fit):
        await gateway.create(training(ends, ids.completions), f"fit-{number}")
    await gateway.create(training(endless, messages), "messages")


async def test_a_template_is_asked_for_by_any_row_and_must_be_one_that_such_rows_use(gateway: Gateway) -> None:
    async def model(number: int, **files: bytes) -> dict[str, str]:
        given = {"config.json": json.dumps(POLICY_CONFIG).encode(), "model.safetensors": safetensors(number)}
        parts = {name.replace("__", "."): data for name, data in files.items()} | {"tokenizer.json": b"{}"}
        return {"model_id": (await gateway.ask(gateway.models.UploadModel, model_parts(given | parts))).model.model_id}

    async def dataset(*rows: dict[str, Any]) -> str:
        return str((await gateway.upload_dataset(rows)).dataset.dataset_id)

    text = {"prompt": "hi", "completion": "ho"}
    chat = {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "ho"}]}
    tools = chat | {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}
    mixed, calling, both = await dataset(text, text, chat), await dataset(text, tools), await dataset(tools, chat)
    template = b"{{ messages }}"
    none = await model(1)
    named = await model(2, **{"additional_chat_templates/tool_use__jinja": template})
    listed = await model(
        3,
        tokenizer_config__json=json.dumps(
            {"chat_template": [{"name": "tool_use", "template": "{{ messages }}"}]}
        ).encode(),
    )
    # Transformers gives it to the processor, and the tokenizer has none.
    of_a_processor = await model(4, chat_template__json=b'{"chat_template": "{{ messages }}"}')
    whole = await model(5, chat_template__jinja=template, **{"additional_chat_templates/rag__jinja": template})

    async def said(model: dict[str, str], dataset: str) -> str:
        spec = {"supervised_training": {"model": model, "dataset": ref(dataset)}}
        (description,) = (await refusal(gateway.create(spec, "refused"))).violations.values()
        return description

    for each in (none, of_a_processor):
        assert f"has no chat template, and rows of {mixed} are messages (row 3 is the first)" in await said(each, mixed)
        assert f"has no chat template, and rows of {calling} are messages (row 2 is" in await said(each, calling)
    for each in (named, listed):
        assert (
            f"has no default chat template (only tool_use), and rows of {both} are messages without tools (row 2 is"
            in await said(each, both)
        )
    fits = [(named, calling), (listed, calling), (whole, mixed), (whole, both)]
    for number, (fit, rows) in enumerate(fits):
        await gateway.create({"supervised_training": {"model": fit, "dataset": ref(rows)}}, f"fit-{number}")


async def test_no_adapter_is_asked_for_on_layers_that_the_weights_do_not_have(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    weights = tensors(
        {
            "model.embed_tokens.weight": (4, 2),
            "model.layers.0.self_attn.qkv_proj.weight": (3, 2),
            "model.layers.0.self_attn.o_proj.weight": (2, 2),
            "model.layers.0.input_layernorm.weight": (2,),
            "lm_head.weight": (4, 2),
        }
    )
    files = {"config.json": json.dumps(POLICY_CONFIG).encode(), "model.safetensors": weights}
    uploaded = await gateway.ask(gateway.models.UploadModel, model_parts(files | {"tokenizer.json": b"{}"}))

    def spec(*targets: str, kind: str = "supervised_training") -> dict[str, Any]:
        model, lora = {"model_id": uploaded.model.model_id}, {"rank": 2, "target_modules": list(targets)}
        dataset = ids.completions if kind == "supervised_training" else ids.pairs
        return {kind: {"model": model, "dataset": ref(dataset), "training": {"lora": lora}}}

    refused = await refusal(gateway.create(spec("q_proj", "o_proj"), "wrong"))
    vectors = await refusal(gateway.create(spec("input_layernorm"), "vectors"))
    score = await refusal(gateway.create(spec("score"), "score-of-a-policy"))
    head = await refusal(gateway.create(spec("lm_head", kind="reward_training"), "head-of-a-reward-model"))
    await gateway.create(spec("o_proj", "score", kind="reward_training"), "score-of-a-reward-model")
    for number, targets in enumerate((["o_proj"], ["self_attn.qkv_proj", "lm_head"], ["all-linear"], [])):
        await gateway.create(spec(*targets), f"right-{number}")

    ((field, said),) = refused.violations.items()
    assert field == "spec.supervised_training.training.lora.target_modules"
    assert "the model has no layer q_proj that an adapter can go on" in said
    ((_, said_of_vectors),) = vectors.violations.items()
    assert (
        "no layer input_layernorm that an adapter can go on; it has embed_tokens, lm_head, o_proj, qkv_proj"
        in said_of_vectors
    )
    assert "the model has no layer score that" in score.message
    assert (
        "the model has no layer lm_head that an adapter can go on; it has embed_tokens, o_proj, qkv_proj ("
        in head.message
    )
    assert "it has embed_tokens, lm_head, o_proj, qkv_proj" in said


async def test_an_expression_of_layers_without_end_is_refused_and_keeps_nobody_waiting(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await make_material(gateway)
    weights = tensors(
        {
            "model.embed_tokens.weight": (4, 2),
            "model.layers.0.self_attn.q_proj.weight": (2, 2),
            "lm_head.weight": (4, 2),
        }
    )
    files = {"config.json": json.dumps(POLICY_CONFIG).encode(), "model.safetensors": weights, "tokenizer.json": b"{}"}
    model = {"model_id": (await gateway.ask(gateway.models.UploadModel, model_parts(files))).model.model_id}

    def spec(**lora: list[str]) -> dict[str, Any]:
        training = {"lora": {"rank": 2, **lora}}
        return {"supervised_training": {"model": model, "dataset": ref(ids.completions), "training": training}}

    fields = ("target_modules", "exclude_modules")
    for field in fields:
        await gateway.create(spec(**{field: [r".*(q|v)_proj"]}), f"fine-{field}")
    monkeypatch.setattr(adapter_layers, "_MATCHED_WITHIN_S", 1.0)
    asked = [
        asyncio.create_task(refusal(gateway.create(spec(**{field: ["(([a-z_.0-9]+)+)+!"]}), field)))
        for field in fields * 4
    ]
    await gateway.create(spec(target_modules=["q_proj"]), "beside-them")
    for field, refused in zip(fields * 4, await asyncio.gather(*asked), strict=True):
        ((place, said),) = refused.violations.items()
        assert place == f"spec.supervised_training.training.lora.{field}"
        assert "came to nothing in 1 s: give names of layers" in said


async def test_a_reference_has_the_tokens_of_the_policy(gateway: Gateway) -> None:
    async def model(tokenizer: dict[str, Any], weights: int) -> dict[str, str]:
        files = {"config.json": json.dumps(POLICY_CONFIG).encode(), "model.safetensors": safetensors(weights)}
        files["tokenizer.json"] = json.dumps(tokenizer).encode()
        return {"model_id": (await gateway.ask(gateway.models.UploadModel, model_parts(files))).model.model_id}

    ids = await make_material(gateway)
    ours = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}}
    theirs = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 1, "b": 0}}}
    policy, base = await model(ours, 1), await model(ours, 2)
    other, rewritten = await model(theirs, 3), await model(ours | {"truncation": None}, 4)
    evaluation = {"model": policy, "prompt_dataset": ref(ids.prompts)}

    refused = await refusal(gateway.create({"evaluation": evaluation | {"reference": other}}, "other"))
    for number, reference in enumerate([base, rewritten, policy]):
        await gateway.create({"evaluation": evaluation | {"reference": reference}}, f"same-{number}")

    assert refused.violations == {
        "spec.evaluation.reference": f"{other['model_id']} has other tokens than {policy['model_id']}, so KL between "
        "them has no meaning: name the model the policy was trained from"
    }


async def test_a_reward_model_gives_one_score(gateway: Gateway) -> None:
    async def classifier(head: int = 2, **config: Any) -> dict[str, str]:
        given = {"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"} | config
        files = {"config.json": json.dumps(given).encode(), "model.safetensors": tensors({"score.weight": (head, 4)})}
        parts = model_parts(files | {"tokenizer.json": b"{}"})
        return {"model_id": (await gateway.ask(gateway.models.UploadModel, parts)).model.model_id}

    async def adapter(labels: int) -> dict[str, str]:
        base = (await gateway.upload_model()).model.model_id
        config = json.dumps({"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": base}).encode()
        weights = tensors({"base_model.model.score.weight": (labels, 4)})
        parts = model_parts({"adapter_config.json": config, "adapter_model.safetensors": weights})
        return {"model_id": (await gateway.ask(gateway.models.UploadModel, parts)).model.model_id}

    ids = await make_material(gateway)
    several = [
        (await classifier(num_labels=3), "has 3 labels: a reward model has exactly one"),
        (await classifier(id2label={"0": "bad", "1": "good"}), "has 2 labels: "),
        (await classifier(), "has 2 labels: "),
        (await classifier(head=1), '(2 where that says nothing), and its head gives 1 score: write "num_labels": 1'),
        (await adapter(5), "has 5 labels: "),
    ]
    for model, said in several:
        for field, spec in _uses_of_a_reward_model(ids, model).items():
            refused = await refusal(gateway.create(spec, "several"))
            assert set(refused.violations) == {field}
            assert said in refused.violations[field]
    for number, model in enumerate([await classifier(1, id2label={"0": "score"}), await adapter(1)]):
        for field, spec in _uses_of_a_reward_model(ids, model).items():
            await gateway.create(spec, f"one-{field.replace('.', '-')}-{number}")


async def test_a_family_without_a_classifier_has_no_reward_model(gateway: Gateway) -> None:
    ids = await make_material(gateway)
    config = {"architectures": ["GraniteForCausalLM"], "model_type": "granite"}
    model = {"model_id": (await gateway.upload_model(config, weights=3)).model.model_id}
    training = {"reward_training": {"model": model, "dataset": ref(ids.pairs)}}
    policy = {"policy_training": {"model": model, "dataset": ref(ids.pairs), "method": {"name": "dpo"}}}

    refused = await refusal(gateway.create(training, "reward"))
    await gateway.create(policy, "policy")

    ((field, said),) = refused.violations.items()
    assert field == "spec.reward_training.model"
    assert "is a granite model, of which transformers has no sequence classifier" in said
    assert "give a reward model of another family" in said


def _uses_of_a_reward_model(ids: Material, model: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Every field that takes one, and a spec with it there."""
    policy, pairs = {"model_id": ids.policy}, ref(ids.pairs)
    return {
        "spec.policy_training.margin.reward_model": {
            "policy_training": {"model": policy, "dataset": pairs, "margin": {"reward_model": model}}
        },
        "spec.reward_training.model": {"reward_training": {"model": model, "dataset": pairs}},
        "spec.calibration.reward_model": {"calibration": {"eval_dataset": pairs, "reward_model": model}},
        "spec.evaluation.reward_model": {
            "evaluation": {"model": policy, "prompt_dataset": pairs, "reward_model": model}
        },
    }
