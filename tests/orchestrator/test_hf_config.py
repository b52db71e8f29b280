"""Hugging Face configurations; parameter counts are those of the published checkpoints."""

import json
from typing import Any

import pytest

from trimtab.core.errors import InputError
from trimtab.orchestrator.hf_config import model_from_hf_config

LLAMA_3_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
GPT2: dict[str, Any] = {
    "activation_function": "gelu_new",
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
}
MISTRAL_7B_V03 = LLAMA_3_8B | {
    "model_type": "mistral",
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "vocab_size": 32768,
}
MIXTRAL = MISTRAL_7B_V03 | {
    "model_type": "mixtral",
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "vocab_size": 32000,
}
QWEN2_05B = {
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 131072,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


@pytest.mark.parametrize(
    ("document", "num_parameters"),
    [
        pytest.param(LLAMA_3_8B, 8_030_261_248, id="llama"),
        pytest.param(GPT2, 124_439_808, id="gpt2"),
        pytest.param(MISTRAL_7B_V03, 7_248_023_552, id="mistral"),
        pytest.param(MIXTRAL, 46_702_792_704, id="mixtral"),
        pytest.param(QWEN2_05B, 494_032_768, id="qwen2"),
    ],
)
def test_the_model_has_as_many_parameters_as_its_checkpoint(
    document: dict[str, Any], num_parameters: int
) -> None:
    assert model_from_hf_config(document, name="m").num_parameters == num_parameters


def test_the_rotary_base_is_read_from_either_place() -> None:
    older = model_from_hf_config(LLAMA_3_8B, name="m")
    newer = {key: value for key, value in LLAMA_3_8B.items() if not key.startswith("rope")}
    newer["rope_parameters"] = {"rope_theta": 500000.0, "rope_type": "default"}
    assert model_from_hf_config(newer, name="m") == older
    assert older.rope_theta == 500_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, "unknown type 'lama'; did you mean 'llama'?"),
        (
            {"model_type": "zebra"},
            "model_type: unknown type 'zebra'; expected one of deepseek_v2,",
        ),
        ({"model_type": "bert"}, "model_type: bert is not supported: an encoder"),
        ({"model_type": "gpt_oss"}, "every second layer has a sliding window"),
        ({"model_type": "deepseek_v3"}, "qk_rope_head_dim: missing from the Hugging Face"),
        (
            {"model_type": "qwen3_moe"},
            "num_experts: missing from the Hugging Face config.json",
        ),
        ({"model_type": "mistral", "sliding_window": -4}, "sliding_window: expected a whole"),
        ({"rope_parameters": 3}, "rope_parameters: expected an object or null, got 3"),
        ({"hidden_act": 3}, "hidden_act: expected 'silu', got 3"),
        ({"model_type": "t5"}, "t5 is not supported: an encoder and a decoder"),
        ({"model_type": None}, "model_type: missing; expected one of deepseek_v2"),
        ({"rope_scaling": 3}, "rope_scaling: expected an object or null, got 3"),
        ({"sliding_window": 4096}, "sliding_window: expected null or at least 8192, got 4096"),
        ({"sliding_window": "wide"}, "sliding_window: expected null or at least 8192"),
        ({"max_position_embeddings": "8k"}, "max_position_embeddings: expected a whole number"),
        ({"attention_bias": True}, "attention_bias: expected False, got True"),
        ({"quantization_config": {"bits": 4}}, "expected the model before it was quantized"),
        ({"hidden_size": None}, "hidden_size: missing from the Hugging Face config.json"),
        ({"hidden_size": "big"}, "expected whole numbers, got 'big' and 32"),
        ({"hidden_size": 4100}, "expected a multiple of the 32 heads, got 4100"),
        ({"num_hidden_layers": -1}, "model.num_layers: expected a whole number >= 1, got -1"),
    ],
)
def test_an_unsupported_configuration_is_refused_by_name(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        model_from_hf_config(LLAMA_3_8B | changes, name="m")
    assert message in str(caught.value)


def test_a_gpt2_with_another_attention_is_refused() -> None:
    changed = GPT2 | {"scale_attn_by_inverse_layer_idx": True}
    with pytest.raises(InputError, match="scale_attn_by_inverse_layer_idx: expected False"):
        model_from_hf_config(changed, name="m")


def test_a_qwen2_with_a_window_is_refused() -> None:
    with pytest.raises(InputError, match="expected null or at least 131072, got 32768"):
        model_from_hf_config(
            QWEN2_05B | {"use_sliding_window": True, "sliding_window": 32_768}, name="m"
        )


def test_a_window_that_holds_every_sequence_changes_nothing() -> None:
    wide = LLAMA_3_8B | {"sliding_window": 8_192}
    assert model_from_hf_config(wide, name="m") == model_from_hf_config(LLAMA_3_8B, name="m")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling: expected no"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "got 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters: expected no scaling"),
        ({"hidden_act": "gelu"}, "hidden_act: expected 'silu', got 'gelu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1.0, got 0.5"),
        ({"model_type": "mistral", "sliding_window": 4096}, "a window of 4096 tokens"),
        ({"model_type": "qwen3", "head_dim": 128}, "its queries and keys are normalized"),
    ],
)
def test_what_costs_the_same_is_planned_but_not_trained(
    changes: dict[str, Any], reason: str
) -> None:
    model = model_from_hf_config(LLAMA_3_8B | changes, name="m")
    assert reason in model.planned_only
    plain = model_from_hf_config(LLAMA_3_8B, name="m")
    assert plain.planned_only == ""
    assert model.matmul_parameters == plain.matmul_parameters


def test_a_window_takes_pairs_out_of_attention() -> None:
    narrow = LLAMA_3_8B | {"model_type": "mistral", "sliding_window": 1024}
    model = model_from_hf_config(narrow, name="m")
    pairs = sum(min(position, 1024) for position in range(8192))
    assert model.attended_squares(8192) == pytest.approx(2 * pairs, rel=1e-3)
    assert model.attended_squares(512) == 512**2


TINY_WIDTHS = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 1000,
    "max_position_embeddings": 512,
}  # fmt: skip
TINY_EXPERTS = {"moe_intermediate_size": 64, "num_experts_per_tok": 2}
TINY_LATENT = TINY_WIDTHS | TINY_EXPERTS | {
    "num_key_value_heads": 8, "n_routed_experts": 8, "n_shared_experts": 1,
    "first_k_dense_replace": 2, "kv_lora_rank": 64, "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32, "v_head_dim": 24, "pad_token_id": 0, "n_group": 2, "topk_group": 1,
}  # fmt: skip
TINY_GPTJ = {"n_embd": 256, "n_layer": 4, "n_head": 8, "n_positions": 512, "vocab_size": 1000}


@pytest.mark.parametrize(
    ("model_type", "fields", "left_out"),
    [
        ("deepseek_v3", TINY_LATENT | {"q_lora_rank": 96}, 0),
        ("deepseek_v2", TINY_LATENT | {"q_lora_rank": None}, 0),
        ("qwen3", TINY_WIDTHS | {"head_dim": 48}, 0),
        ("qwen3_moe", TINY_WIDTHS | TINY_EXPERTS | {"head_dim": 48, "num_experts": 8}, 0),
        (
            "qwen2_moe",
            TINY_WIDTHS
            | TINY_EXPERTS
            | {"num_experts": 8, "shared_expert_intermediate_size": 128},
            4 * 256,
        ),
        ("gptj", TINY_GPTJ | {"rotary_dim": 16}, 4 * (5 * 256 - 2 * 256) + 1000),
        ("gpt_neox", TINY_WIDTHS, 0),
        ("opt", TINY_WIDTHS | {"ffn_dim": 1024, "word_embed_proj_dim": 256}, 2 * 256),
        ("gemma", TINY_WIDTHS | {"head_dim": 96}, 0),
        ("mistral", TINY_WIDTHS | {"sliding_window": 128}, 0),
    ],
)
def test_parameters_are_those_of_transformers(
    model_type: str, fields: dict[str, Any], left_out: int
) -> None:
    """`left_out` are the biases, gates and positions that docstrings say are not counted."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(
        model_type, bos_token_id=1, eos_token_id=2, **fields
    )
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(config)
    document = json.loads(config.to_json_string(use_diff=False))
    model = model_from_hf_config(document, name="m")
    assert model.num_parameters + left_out == sum(p.numel() for p in theirs.parameters())


DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18_432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    "vocab_size": 129_280, "max_position_embeddings": 163_840,
}  # fmt: skip


def test_deepseek_v3_has_671_billion_parameters_and_37_active() -> None:
    """Source: DeepSeek-V3, arXiv:2412.19437, abstract; without the layer for a second token."""
    model = model_from_hf_config(DEEPSEEK_V3, name="m")
    assert model.num_parameters == pytest.approx(671.0e9, rel=1e-3)
    assert model.matmul_parameters == pytest.approx(37e9, rel=0.02)
