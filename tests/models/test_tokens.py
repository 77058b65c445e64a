"""Where a text goes on and where it ends: tokenizers that add BOS or EOS, chat models with ends of their own."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from fixtures_seal import DOMAIN, INNER, WORDING, candidate, plain_passage, seedling

from seal_lib.errors import DataError
from seal_lib.generation.contract import Request, Sampling, prompt_ids
from seal_lib.generation.hf import HFGenerator, _decode_tokens
from seal_lib.loops.policy import Policy
from seal_lib.models.tokens import ends, read_ids, turn_end, written_ids

PAD, EOS, BOS, START, TURN = range(5)  # Gemma's order: a chat turn ends in <end_of_turn>, which is not the EOS
#: Gemma's template in our own words
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<end_of_turn>\n{% endfor %}"
)


def tokenizer(added: str = "<bos> $A", chat: str | None = None):
    """A byte-level tokenizer whose post-processor adds what ``added`` says."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({text: i for i, text in enumerate([*special, *letters])}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(single=added, special_tokens=[("<bos>", BOS), ("<eos>", EOS)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )
    made.chat_template = chat
    return made


def model(listed):
    """A tiny random model whose tokens are all equally likely; ``listed``: of its generation_config."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=261,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    made = LlamaForCausalLM(config).eval()
    torch.nn.init.zeros_(made.lm_head.weight)
    made.generation_config.eos_token_id = listed
    return made


# ------------------------------------------------------------------------------------- the M-step's target


def pair(tok, listed=EOS, text: str = "a b"):
    return DOMAIN.target(plain_passage(), text, Policy("p", model(listed), tok))


def test_the_target_of_the_m_step_goes_on_from_the_prompt_without_a_second_bos() -> None:
    tok = tokenizer()
    prompt, target = pair(tok)
    assert prompt[0] == BOS and prompt.count(BOS) == 1
    assert target == [*tok("a b", add_special_tokens=False)["input_ids"], EOS] and BOS not in target
    assert tok("a b")["input_ids"][0] == BOS  # which is what it would begin with


def test_for_the_shipped_model_nothing_changes() -> None:
    weights, tok = seedling()
    passage = plain_passage()
    found = DOMAIN.target(passage, "- one", Policy("p", weights, tok))
    plain = tok(WORDING.write(passage))["input_ids"], tok("- one")["input_ids"] + [tok.eos_token_id]
    assert found == plain and ends(weights, tok) == (tok.eos_token_id,)


def test_a_control_token_that_a_model_spelt_out_stays_text() -> None:
    tok = tokenizer()
    assert written_ids("a<eos>b", TURN, tok).count(EOS) == 0 and written_ids("a<eos>b", TURN, tok)[-1] == TURN


@pytest.mark.parametrize(
    ("listed", "chat", "end"),
    [
        ([EOS, TURN], TEMPLATE, TURN),  # Gemma, Phi: the turn's end is not the tokenizer's EOS
        ([TURN, EOS], TEMPLATE, TURN),
        (TURN, TEMPLATE, TURN),
        (
            EOS,
            TEMPLATE,
            EOS,
        ),  # a base model that carries a chat template (Qwen2.5): its list does not know the turn's end
        ([EOS, TURN], None, EOS),
        ([EOS, START], TEMPLATE, EOS),  # what opens a turn does not end one
        (None, None, EOS),
    ],
)
def test_training_ends_a_text_where_the_model_was_taught_to(listed, chat, end: int) -> None:
    tok = tokenizer(chat=chat)
    assert turn_end(model(listed), tok) == end and pair(tok, listed)[1][-1] == end


def test_without_any_end_it_is_said() -> None:
    tok = tokenizer()
    tok.eos_token = None
    assert ends(model(None), tok) == ()
    with pytest.raises(DataError, match="no EOS token"):
        turn_end(model(None), tok)


# --------------------------------------------------------------------------------------------- generation


@pytest.mark.parametrize(("listed", "last"), [([EOS, TURN], {EOS, TURN}), (TURN, {EOS, TURN}), (None, {EOS})])
def test_generation_ends_at_every_id_that_ends_a_text(listed, last: set[int]) -> None:
    weights, tok, limit = model(listed), tokenizer(), 100
    assert set(ends(weights, tok)) == last
    sampled = _decode_tokens(weights, tok, [[BOS, 40]] * 300, list(range(300)), Sampling(limit, temperature=1.0))
    ended = [ids for ids in sampled if len(ids) < limit]
    assert {ids[-1] for ids in ended} == last and len(ended) > 30
    assert not any(token in last for ids in sampled for token in ids[:-1])
    asked = [Request("a", seed) for seed in range(60)]
    done = [c for (c,) in HFGenerator(weights, tok).generate(asked, Sampling(limit, temperature=1.0))]
    assert all((c.finish == "eos") is (c.tokens < limit) for c in done if c.tokens < limit)
    assert any(c.finish == "eos" for c in done) and not any("<end_of_turn>" in c.text for c in done)


@pytest.mark.parametrize("listed", ["<|im_end|>", [2, "</s>"], True, [[2]]])
def test_an_end_that_is_no_id_is_named(listed) -> None:
    with pytest.raises(DataError, match="eos_token_id holds"):
        ends(model(listed), tokenizer())


def test_vllm_is_told_the_same_ends(tmp_path) -> None:
    from seal_lib.generation.vllm_engine import Engine, Settings

    told = {}
    engine = object.__new__(Engine)
    engine._names = {}
    engine.child = SimpleNamespace(folder=tmp_path, call=lambda message, *_: told.update(message) or {"ids": [[4]]})
    last = ends(model([EOS, TURN]), tokenizer())
    assert engine.sample([([2, 7], 0, None)], Sampling(3), last, 8, Settings()) == [[4]]
    assert told["stop_token_ids"] == [EOS, TURN]


# ------------------------------------------------------------------------- tokenizers that append an EOS


@pytest.mark.parametrize("added", ["$A <eos>", "<bos> $A <eos>"])
def test_a_prompt_does_not_end_in_end_of_text(added: str) -> None:
    tok = tokenizer(added)
    assert tok("ab")["input_ids"][-1] == EOS
    (ids,) = prompt_ids([Request("ab")], tok, Sampling(4), room=99)
    assert ids[-1] == tok("b", add_special_tokens=False)["input_ids"][0] and EOS not in ids
    assert (ids[0] == BOS) is ("<bos>" in added)
    assert read_ids("ab<eos>", tok)[-2:].count(EOS) == 1  # one that was written stays
    prompt, target = pair(tok)
    assert EOS not in prompt and target.count(EOS) == 1


def test_documents_of_such_a_tokenizer_have_the_end_that_the_settings_say() -> None:
    tok = tokenizer("<bos> $A <eos>")
    for pad_loss, count in (("none", 0), ("eos", 1)):
        domain = replace(DOMAIN, inner=replace(INNER, pad_loss=pad_loss))
        example = domain.examples(candidate(plain_passage(), "one"), tok)[0]
        assert list(example.ids).count(EOS) == count and example.ids[0] == BOS
