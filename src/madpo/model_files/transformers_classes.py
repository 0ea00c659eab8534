"""Which classes transformers has of each `model_type`, for those who do not import it.

Written by scripts/transformers_classes.py; a test compares it with the transformers that is pinned.
"""


def _classes(pairs: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in pairs.split())


def _families(names: str) -> frozenset[str]:
    return frozenset(names.split())


LANGUAGE_MODELS = _classes(
    """
    afmoe:AfmoeForCausalLM apertus:ApertusForCausalLM arcee:ArceeForCausalLM aria_text:AriaTextForCausalLM
    axk1:AXK1ForCausalLM axk2:AXK2ForCausalLM bailing_hybrid:BailingHybridForCausalLM bamba:BambaForCausalLM
    bart:BartForCausalLM beam:BeamForCausalLM bert:BertLMHeadModel bert-generation:BertGenerationDecoder
    big_bird:BigBirdForCausalLM bigbird_pegasus:BigBirdPegasusForCausalLM biogpt:BioGptForCausalLM
    bitnet:BitNetForCausalLM blenderbot:BlenderbotForCausalLM blenderbot-small:BlenderbotSmallForCausalLM
    bloom:BloomForCausalLM blt:BltForCausalLM camembert:CamembertForCausalLM codegen:CodeGenForCausalLM
    cohere:CohereForCausalLM cohere2:Cohere2ForCausalLM cohere2_moe:Cohere2MoeForCausalLM
    cohere_compass_text:CohereCompassForCausalLM cpmant:CpmAntForCausalLM ctrl:CTRLLMHeadModel cwm:CwmForCausalLM
    data2vec-text:Data2VecTextForCausalLM dbrx:DbrxForCausalLM deepseek_v2:DeepseekV2ForCausalLM
    deepseek_v3:DeepseekV3ForCausalLM deepseek_v32:DeepseekV32ForCausalLM deepseek_v4:DeepseekV4ForCausalLM
    diffllama:DiffLlamaForCausalLM doge:DogeForCausalLM dots1:Dots1ForCausalLM dots3_note:Dots3NoteForCausalLM
    dots3_note_text:Dots3NoteForCausalLM electra:ElectraForCausalLM emu3:Emu3ForCausalLM ernie:ErnieForCausalLM
    ernie4_5:Ernie4_5ForCausalLM ernie4_5_moe:Ernie4_5_MoeForCausalLM exaone4:Exaone4ForCausalLM
    exaone_moe:ExaoneMoeForCausalLM falcon:FalconForCausalLM falcon_h1:FalconH1ForCausalLM
    falcon_mamba:FalconMambaForCausalLM flex_olmo:FlexOlmoForCausalLM flint:FlintForCausalLM fuyu:FuyuForCausalLM
    gemma:GemmaForCausalLM gemma2:Gemma2ForCausalLM gemma3:Gemma3ForConditionalGeneration gemma3_text:Gemma3ForCausalLM
    gemma3n:Gemma3nForConditionalGeneration gemma3n_text:Gemma3nForCausalLM gemma4:Gemma4ForConditionalGeneration
    gemma4_assistant:Gemma4AssistantForCausalLM gemma4_text:Gemma4ForCausalLM
    gemma4_unified:Gemma4UnifiedForConditionalGeneration gemma4_unified_assistant:Gemma4UnifiedAssistantForCausalLM
    gemma4_unified_text:Gemma4UnifiedForCausalLM git:GitForCausalLM glm:GlmForCausalLM glm4:Glm4ForCausalLM
    glm4_moe:Glm4MoeForCausalLM glm4_moe_lite:Glm4MoeLiteForCausalLM glm_moe_dsa:GlmMoeDsaForCausalLM
    got_ocr2:GotOcr2ForConditionalGeneration gpt-sw3:GPT2LMHeadModel gpt2:GPT2LMHeadModel
    gpt_bigcode:GPTBigCodeForCausalLM gpt_neo:GPTNeoForCausalLM gpt_neox:GPTNeoXForCausalLM
    gpt_neox_japanese:GPTNeoXJapaneseForCausalLM gpt_oss:GptOssForCausalLM gptj:GPTJForCausalLM
    granite:GraniteForCausalLM granite_swa:GraniteSWAForCausalLM granitemoe:GraniteMoeForCausalLM
    granitemoe_swa:GraniteMoeSWAForCausalLM granitemoehybrid:GraniteMoeHybridForCausalLM
    granitemoeshared:GraniteMoeSharedForCausalLM helium:HeliumForCausalLM hrm_text:HrmTextForCausalLM
    hunyuan_v1_dense:HunYuanDenseV1ForCausalLM hunyuan_v1_moe:HunYuanMoEV1ForCausalLM hy_v3:HYV3ForCausalLM
    hy_v4:HYV4ForCausalLM hyperclovax:HyperCLOVAXForCausalLM inkling2_text:Inkling2ForCausalLM
    inkling_text:InklingForCausalLM internlm3:LlamaForCausalLM iquestcoder:LlamaForCausalLM jais2:Jais2ForCausalLM
    jamba:JambaForCausalLM jetmoe:JetMoeForCausalLM kimi_linear:KimiLinearForCausalLM kolibri1:Kolibri1ForCausalLM
    laguna:LagunaForCausalLM lfm2:Lfm2ForCausalLM lfm2_moe:Lfm2MoeForCausalLM lfm3:Lfm3ForCausalLM
    llama:LlamaForCausalLM llama4:Llama4ForCausalLM llama4_text:Llama4ForCausalLM longcat_flash:LongcatFlashForCausalLM
    mamba:MambaForCausalLM mamba2:Mamba2ForCausalLM marian:MarianForCausalLM mbart:MBartForCausalLM
    megatron-bert:MegatronBertForCausalLM mellum:MellumForCausalLM mimo_v2_flash:MiMoV2FlashForCausalLM
    minicpm3:MiniCPM3ForCausalLM minimax:MiniMaxForCausalLM minimax_m2:MiniMaxM2ForCausalLM
    minimax_m3_vl_text:MiniMaxM3VLForCausalLM ministral:MinistralForCausalLM ministral3:Ministral3ForCausalLM
    mistral:MistralForCausalLM mixtral:MixtralForCausalLM mllama:MllamaForCausalLM
    modernbert-decoder:ModernBertDecoderForCausalLM moshi:MoshiForCausalLM
    moss_transcribe_diarize:MossTranscribeDiarizeForConditionalGeneration mpt:MptForCausalLM
    musicgen:MusicgenForCausalLM musicgen_melody:MusicgenMelodyForCausalLM mvp:MvpForCausalLM
    nanochat:NanoChatForCausalLM nemotron:NemotronForCausalLM nemotron_h:NemotronHForCausalLM olmo:OlmoForCausalLM
    olmo2:Olmo2ForCausalLM olmo3:Olmo3ForCausalLM olmo_hybrid:OlmoHybridForCausalLM olmoe:OlmoeForCausalLM
    openai-gpt:OpenAIGPTLMHeadModel opt:OPTForCausalLM pegasus:PegasusForCausalLM persimmon:PersimmonForCausalLM
    phi:PhiForCausalLM phi3:Phi3ForCausalLM phi4_multimodal:Phi4MultimodalForCausalLM phimoe:PhimoeForCausalLM
    plbart:PLBartForCausalLM prophetnet:ProphetNetForCausalLM qwen2:Qwen2ForCausalLM qwen2_moe:Qwen2MoeForCausalLM
    qwen3:Qwen3ForCausalLM qwen3_5:Qwen3_5ForCausalLM qwen3_5_moe:Qwen3_5MoeForCausalLM
    qwen3_5_moe_text:Qwen3_5MoeForCausalLM qwen3_5_text:Qwen3_5ForCausalLM qwen3_moe:Qwen3MoeForCausalLM
    qwen3_next:Qwen3NextForCausalLM qwen4_exp:Qwen4ExpForCausalLM qwen4_exp_text:Qwen4ExpForCausalLM
    recurrent_gemma:RecurrentGemmaForCausalLM reformer:ReformerModelWithLMHead rembert:RemBertForCausalLM
    roberta:RobertaForCausalLM roberta-prelayernorm:RobertaPreLayerNormForCausalLM roc_bert:RoCBertForCausalLM
    roformer:RoFormerForCausalLM rwkv:RwkvForCausalLM seed_oss:SeedOssForCausalLM smollm3:SmolLM3ForCausalLM
    solar_open:SolarOpenForCausalLM stablelm:StableLmForCausalLM starcoder2:Starcoder2ForCausalLM trocr:TrOCRForCausalLM
    vaultgemma:VaultGemmaForCausalLM whisper:WhisperForCausalLM xglm:XGLMForCausalLM xlm:XLMWithLMHeadModel
    xlm-roberta:XLMRobertaForCausalLM xlm-roberta-xl:XLMRobertaXLForCausalLM xlnet:XLNetLMHeadModel
    xlstm:xLSTMForCausalLM xmod:XmodForCausalLM youtu:YoutuForCausalLM zamba:ZambaForCausalLM zamba2:Zamba2ForCausalLM
    zaya:ZayaForCausalLM
    """
)
"""Loaded by `AutoModelForCausalLM`."""

CLASSIFIERS = _classes(
    """
    albert:AlbertForSequenceClassification arcee:ArceeForSequenceClassification axk1:AXK1ForSequenceClassification
    axk2:AXK2ForSequenceClassification bart:BartForSequenceClassification bert:BertForSequenceClassification
    big_bird:BigBirdForSequenceClassification bigbird_pegasus:BigBirdPegasusForSequenceClassification
    biogpt:BioGptForSequenceClassification bloom:BloomForSequenceClassification
    camembert:CamembertForSequenceClassification canine:CanineForSequenceClassification
    cohere_compass_text:CohereCompassTextForSequenceClassification convbert:ConvBertForSequenceClassification
    ctrl:CTRLForSequenceClassification data2vec-text:Data2VecTextForSequenceClassification
    deberta:DebertaForSequenceClassification deberta-v2:DebertaV2ForSequenceClassification
    deepseek_v2:DeepseekV2ForSequenceClassification deepseek_v3:DeepseekV3ForSequenceClassification
    diffllama:DiffLlamaForSequenceClassification distilbert:DistilBertForSequenceClassification
    doge:DogeForSequenceClassification electra:ElectraForSequenceClassification ernie:ErnieForSequenceClassification
    esm:EsmForSequenceClassification esmc:EsmcForSequenceClassification eurobert:EuroBertForSequenceClassification
    exaone4:Exaone4ForSequenceClassification falcon:FalconForSequenceClassification
    flaubert:FlaubertForSequenceClassification fnet:FNetForSequenceClassification funnel:FunnelForSequenceClassification
    gemma:GemmaForSequenceClassification gemma2:Gemma2ForSequenceClassification gemma3:Gemma3ForSequenceClassification
    gemma3_text:Gemma3TextForSequenceClassification glm:GlmForSequenceClassification glm4:Glm4ForSequenceClassification
    gpt-sw3:GPT2ForSequenceClassification gpt2:GPT2ForSequenceClassification
    gpt_bigcode:GPTBigCodeForSequenceClassification gpt_neo:GPTNeoForSequenceClassification
    gpt_neox:GPTNeoXForSequenceClassification gpt_oss:GptOssForSequenceClassification gptj:GPTJForSequenceClassification
    gte:GteForSequenceClassification helium:HeliumForSequenceClassification
    hunyuan_v1_dense:HunYuanDenseV1ForSequenceClassification hunyuan_v1_moe:HunYuanMoEV1ForSequenceClassification
    ibert:IBertForSequenceClassification jamba:JambaForSequenceClassification jetmoe:JetMoeForSequenceClassification
    jina_embeddings_v3:JinaEmbeddingsV3ForSequenceClassification layoutlm:LayoutLMForSequenceClassification
    layoutlmv2:LayoutLMv2ForSequenceClassification layoutlmv3:LayoutLMv3ForSequenceClassification
    lilt:LiltForSequenceClassification llama:LlamaForSequenceClassification
    longformer:LongformerForSequenceClassification luke:LukeForSequenceClassification
    markuplm:MarkupLMForSequenceClassification mbart:MBartForSequenceClassification
    megatron-bert:MegatronBertForSequenceClassification minicpm3:MiniCPM3ForSequenceClassification
    minimax:MiniMaxForSequenceClassification ministral:MinistralForSequenceClassification
    ministral3:Ministral3ForSequenceClassification mistral:MistralForSequenceClassification
    mistral4:Mistral4ForSequenceClassification mixtral:MixtralForSequenceClassification
    mobilebert:MobileBertForSequenceClassification modernbert:ModernBertForSequenceClassification
    modernbert-decoder:ModernBertDecoderForSequenceClassification modernvbert:ModernVBertForSequenceClassification
    mpnet:MPNetForSequenceClassification mpt:MptForSequenceClassification mra:MraForSequenceClassification
    mt5:MT5ForSequenceClassification mvp:MvpForSequenceClassification nemotron:NemotronForSequenceClassification
    nomic_bert:NomicBertForSequenceClassification nystromformer:NystromformerForSequenceClassification
    olmo:OlmoForSequenceClassification olmo2:Olmo2ForSequenceClassification olmo3:Olmo3ForSequenceClassification
    openai-gpt:OpenAIGPTForSequenceClassification opt:OPTForSequenceClassification
    perceiver:PerceiverForSequenceClassification persimmon:PersimmonForSequenceClassification
    phi:PhiForSequenceClassification phi3:Phi3ForSequenceClassification phimoe:PhimoeForSequenceClassification
    plbart:PLBartForSequenceClassification qwen2:Qwen2ForSequenceClassification
    qwen2_moe:Qwen2MoeForSequenceClassification qwen3:Qwen3ForSequenceClassification
    qwen3_5:Qwen3_5ForSequenceClassification qwen3_5_text:Qwen3_5TextForSequenceClassification
    qwen3_moe:Qwen3MoeForSequenceClassification qwen3_next:Qwen3NextForSequenceClassification
    reformer:ReformerForSequenceClassification rembert:RemBertForSequenceClassification
    roberta:RobertaForSequenceClassification roberta-prelayernorm:RobertaPreLayerNormForSequenceClassification
    roc_bert:RoCBertForSequenceClassification roformer:RoFormerForSequenceClassification
    seed_oss:SeedOssForSequenceClassification smollm3:SmolLM3ForSequenceClassification
    squeezebert:SqueezeBertForSequenceClassification stablelm:StableLmForSequenceClassification
    starcoder2:Starcoder2ForSequenceClassification t5:T5ForSequenceClassification
    t5gemma:T5GemmaForSequenceClassification t5gemma2:T5Gemma2ForSequenceClassification
    tapas:TapasForSequenceClassification ultrabert:UltrabertForSequenceClassification
    ultravbert:UltraVBertForSequenceClassification umt5:UMT5ForSequenceClassification xlm:XLMForSequenceClassification
    xlm-roberta:XLMRobertaForSequenceClassification xlm-roberta-xl:XLMRobertaXLForSequenceClassification
    xlnet:XLNetForSequenceClassification xmod:XmodForSequenceClassification yoso:YosoForSequenceClassification
    zamba:ZambaForSequenceClassification zamba2:Zamba2ForSequenceClassification
    """
)
"""Loaded by `AutoModelForSequenceClassification`."""

OWN_HEAD = _families(
    """
    afmoe apertus arcee aria_text axk1 axk2 bamba beam bitnet codegen cwm dbrx deepseek_v2 deepseek_v3 deepseek_v32
    deepseek_v4 diffllama doge dots1 dots3_note dots3_note_text emu3 exaone4 exaone_moe falcon_h1 flex_olmo flint fuyu
    glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa gpt_neox gpt_oss gptj granite granitemoe granitemoe_swa granitemoehybrid
    granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 hyperclovax internlm3 iquestcoder jais2
    jamba kolibri1 laguna llama llama4 llama4_text longcat_flash mamba2 mellum mimo_v2_flash minimax minimax_m2
    minimax_m3_vl_text ministral ministral3 mistral mixtral nanochat nemotron olmo olmo2 olmo3 olmo_hybrid olmoe
    persimmon phi phi3 phi4_multimodal phimoe qwen2 qwen2_moe qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text
    qwen3_moe qwen3_next qwen4_exp qwen4_exp_text seed_oss solar_open stablelm
    """
)
"""Language models whose `lm_head` is their embeddings only where the configuration says so."""

SHARED_HEAD = _families(
    """
    bart blenderbot blenderbot-small bloom cohere cohere2 cohere2_moe cohere_compass_text ctrl ernie4_5 ernie4_5_moe
    falcon falcon_mamba gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text gemma4 gemma4_text gemma4_unified
    gemma4_unified_assistant gemma4_unified_text got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo granite_swa jetmoe lfm2
    lfm2_moe lfm3 mamba marian mbart minicpm3 moss_transcribe_diarize mpt mvp openai-gpt opt pegasus plbart prophetnet
    recurrent_gemma smollm3 starcoder2 vaultgemma xglm youtu zamba zamba2 zaya
    """
)
"""Those whose head is their embeddings unless the configuration says otherwise."""

WITHOUT_CLASSIFIER = LANGUAGE_MODELS.keys() - CLASSIFIERS.keys()
"""Families that cannot be reward models."""
