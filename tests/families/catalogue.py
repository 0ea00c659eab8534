"""The families that are tested; their configurations lie in `bases/`, as their publishers wrote them but for sizes."""

from tests.families.family import Family
from tests.families.tokenizer_files import TokenizerFiles

_LLAMA_3_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
)
_QWEN_2_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_3_TOKENS = (*_QWEN_2_TOKENS, "<think>", "</think>")
_GEMMA_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
_ENCODER_TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")

CAUSAL = (
    Family(
        "llama-3",
        "Llama 3 Instruct",
        TokenizerFiles(
            "llama3",
            _LLAMA_3_TOKENS,
            template="llama-3",
            before="<|begin_of_text|>",
            beside=("special_tokens_map.json",),
        ),
    ),
    Family(
        "llama-3-base",
        "Llama 3 base with a borrowed template",
        TokenizerFiles(
            "llama3",
            _LLAMA_3_TOKENS,
            template="llama-3",
            before="<|begin_of_text|>",
            beside=("special_tokens_map.json",),
        ),
        learns_end_of_turn=4,
    ),
    Family(
        "llama-3.2",
        "Llama 3.1, 3.2 and 3.3 (date in the template, scaled positions, tied embeddings)",
        TokenizerFiles(
            "llama3",
            _LLAMA_3_TOKENS,
            template="llama-3.2",
            before="<|begin_of_text|>",
            beside=("special_tokens_map.json",),
        ),
    ),
    Family(
        "qwen-2.5",
        "Qwen 2, Qwen 2.5",
        TokenizerFiles(
            "qwen",
            _QWEN_2_TOKENS,
            template="qwen-2.5",
            beside=("vocab.json", "merges.txt"),
        ),
    ),
    Family(
        "qwen-3",
        "Qwen 3 (thinking)",
        TokenizerFiles(
            "qwen",
            _QWEN_3_TOKENS,
            template="qwen-3",
            beside=("vocab.json", "merges.txt"),
        ),
    ),
    Family(
        "qwen-3-moe",
        "Qwen 3 with experts",
        TokenizerFiles(
            "qwen",
            _QWEN_3_TOKENS,
            template="qwen-3",
            beside=("vocab.json", "merges.txt"),
        ),
    ),
    Family(
        "gemma-2",
        "Gemma 2 (soft caps, windows)",
        TokenizerFiles(
            "gemma",
            _GEMMA_TOKENS,
            template="gemma",
            before="<bos>",
            beside=("tokenizer.model", "special_tokens_map.json"),
        ),
        layout="padded",
        attention="eager",
    ),
    Family(
        "gemma-3",
        "Gemma 3 (text models: 270m, 1b)",
        TokenizerFiles(
            "gemma",
            _GEMMA_TOKENS,
            template="gemma",
            before="<bos>",
            beside=("tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
        ),
    ),
    Family(
        "gemma-3-vision",
        "Gemma 3 (text and images: 4b, 12b, 27b; trained on text)",
        TokenizerFiles(
            "gemma",
            _GEMMA_TOKENS,
            template="gemma",
            before="<bos>",
            beside=("tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
        ),
    ),
    Family(
        "mistral",
        "Mistral 7B Instruct, Ministral (windows)",
        TokenizerFiles(
            "llama2",
            ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
            template="mistral",
            before="<s>",
            beside=("tokenizer.model", "special_tokens_map.json"),
        ),
    ),
    Family(
        "phi-3",
        "Phi 3, Phi 3.5 (with `auto_map`: code of their own is named)",
        TokenizerFiles(
            "llama2",
            ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
            template="phi-3",
            beside=("tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
        ),
    ),
    Family(
        "smollm-2",
        "SmolLM 2 (padded with its end of turn)",
        TokenizerFiles(
            "digits",
            _QWEN_2_TOKENS,
            template="smollm-2",
            beside=("vocab.json", "merges.txt", "special_tokens_map.json"),
        ),
    ),
    Family(
        "olmo-2",
        "OLMo 2 Instruct",
        TokenizerFiles(
            "llama3",
            ("<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"),
            template="olmo-2",
            beside=("vocab.json", "merges.txt", "special_tokens_map.json"),
        ),
        has_older_classifier=False,
    ),
    Family(
        "granite-3",
        "Granite 3 Instruct (date in the template)",
        TokenizerFiles(
            "digits",
            ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
            template="granite-3",
            beside=("vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
        ),
        layout="unshared",
        scored_by="smollm-2",
        has_classifier=False,
    ),
    Family(
        "gpt-2",
        "GPT-2 (no template)",
        TokenizerFiles(
            "gpt2",
            ("<|endoftext|>",),
            beside=("vocab.json", "merges.txt"),
        ),
        layout="unshared",
        scored_by="deberta-v3",
    ),
    Family(
        "pythia",
        "Pythia, GPT-NeoX (no template)",
        TokenizerFiles(
            "gpt2",
            ("<|endoftext|>", "<|padding|>"),
            beside=("special_tokens_map.json",),
        ),
        scored_by="modernbert",
    ),
)
"""Policies, and reward models made from them."""

ENCODERS = (
    Family(
        "deberta-v3",
        "DeBERTa v2, v3",
        TokenizerFiles(
            "unigram",
            _ENCODER_TOKENS,
            before="[CLS]",
            after="[SEP]",
            beside=("spm.model", "special_tokens_map.json", "added_tokens.json"),
        ),
        layout="padded",
        attention="eager",
    ),
    Family(
        "modernbert",
        "ModernBERT",
        TokenizerFiles(
            "gpt2",
            _ENCODER_TOKENS,
            before="[CLS]",
            after="[SEP]",
            beside=("special_tokens_map.json",),
        ),
        layout="padded",
    ),
)
"""Reward models only."""

FAMILIES = (*CAUSAL, *ENCODERS)
BY_NAME = {family.name: family for family in FAMILIES}
