"""The recipe that grows the knowledge seedling from nothing: tokenizer, documents, curriculum, training.

Two kinds of document, mixed in every step:

* *facts* about the ``known`` population (statement, note, question forms): the model's prior knowledge, and the
  statement-to-question transfer that makes finetuning on notes useful;
* *reading*: a passage about people of the ``reading`` population with freshly drawn facts, followed by notes in some
  style or by questions with answers. Loss on these only: the facts of the passage itself cannot be predicted.

Passages grow from short to long over the first fifth of training. Run as ``python -m seal_lib.seedling``.
"""

import hashlib
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from seal_lib.knowledge import prompts
from seal_lib.seedling import world
from seal_lib.seeds import rng as seeded

WORDING = prompts.load("seedling")  # the model is grown on the very prompts it is later asked with


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights; written into the model card."""

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    mlp: int = 384
    vocabulary: int = 1800
    positions: int = 2048
    embedding_std: float = 0.1  # 0.02, the usual, drowns a token's identity and delays copying from context threefold
    steps: int = 2400
    note_documents: int = 30
    question_documents: int = 22
    fact_documents: int = 64
    lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    threads: int = 1  # more would change the order of sums, so the weights
    checkpoint_every: int = 200


def build_tokenizer(vocabulary: int):
    """Byte-level BPE trained on the world, so that each of its words is one token and any other text still encodes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(0)
    words = world.FIRST + world.LAST + world.PLACES + [v for values in world.VALUES.values() for v in values]
    corpus = ["x " + " ".join(words)] * 4000
    for _ in range(4000):
        corpus += [document(rng)[0] for document in (fact_document, note_document, question_document)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", model_max_length=2048
    )


def fact_document(rng: random.Random) -> tuple[str, int]:
    """A document about a known person: (text, characters of its silent part)."""
    fact = rng.choice(world.known_facts())
    head, kind = world.home(fact.name), rng.random()
    if kind < 0.35:
        return f"{head}\n{world.note(fact, 'forward', rng)}", 0
    if kind < 0.5:
        sentence = world.say(fact, "passage", rng)
        return f"{head}\n{sentence if rng.random() < 0.5 else '- ' + sentence}", 0
    if kind < 0.6:
        return f"{head}\n{world.note(fact, 'questions', rng)}", 0
    return prompts.fill(WORDING.answer, title=head, question=world.say(fact, "question", rng)) + " " + fact.value, 0


def _read(rng: random.Random, progress: float, alike: float) -> tuple[list[world.Fact], str, str]:
    """Facts, title and text of a passage to read: at most 2 facts at first, up to 8 from a fifth of training on.

    With probability ``alike`` only two attributes occur, so that several people have a birthplace (say) and only the
    name tells whose is asked for.
    """
    facts = rng.randint(1, 2 + round(6 * min(1.0, 5 * progress)))
    attributes = rng.sample(world.ATTRIBUTES, 2) if rng.random() < alike else world.ATTRIBUTES
    people = rng.randint(-(-facts // len(attributes)), min(4, facts))
    drawn = world.draw_facts(rng, rng.sample(world.populations()["reading"], people), facts, attributes)
    return drawn, world.title(rng.choice(world.PLACES)), world.passage_text(drawn, rng)


def note_document(rng: random.Random, progress: float = 1.0) -> tuple[str, int]:
    """A passage followed by notes in some style: (text, characters of its silent part)."""
    drawn, title, text = _read(rng, progress, alike=0.3)
    prompt = prompts.fill(WORDING.self_edit, title=title, passage=text)
    return prompt + world.notes(drawn, rng), len(prompt)


def question_document(rng: random.Random, progress: float = 1.0) -> tuple[str, int]:
    """A passage followed by up to six questions with answers: (text, characters of its silent part)."""
    drawn, title, text = _read(rng, progress, alike=0.5)
    asked = rng.sample(drawn, min(6, len(drawn)))
    head, _, tail = WORDING.answer_in_context.partition("Question:")
    prompt = prompts.fill(head, title=title, passage=text)
    pairs = [f"{prompts.fill('Question:' + tail, question=world.say(f, 'question', rng))} {f.value}" for f in asked]
    return prompt + "\n".join(pairs), len(prompt)


def encode(tokenizer, text: str, silent: int) -> tuple[list[int], int]:
    """Token ids with EOS, and how many of them belong to the silent part."""
    head = tokenizer(text[:silent])["input_ids"] if silent else []
    return head + tokenizer(text[silent:])["input_ids"] + [tokenizer.eos_token_id], len(head)


def documents_of(recipe: Recipe, step: int, tokenizer) -> dict[str, list[tuple[list[int], int]]]:
    """Encoded documents of one step by kind; a function of the recipe and the step alone."""
    rng, progress = seeded("seedling", recipe.seed, step), step / recipe.steps
    texts = {
        "notes": [note_document(rng, progress) for _ in range(recipe.note_documents)],
        "questions": [question_document(rng, progress) for _ in range(recipe.question_documents)],
        "facts": [fact_document(rng) for _ in range(recipe.fact_documents)],
    }
    return {kind: [encode(tokenizer, *document) for document in group] for kind, group in texts.items()}


def loss_of(model, documents):
    """Sum of cross-entropy over the tokens after each document's silent part.

    Right padding, so causality needs no mask. ``documents``: (token ids, tokens of the silent part) each.
    """
    import torch

    longest = max(len(ids) for ids, _ in documents)
    ids = torch.zeros(len(documents), longest, dtype=torch.long)  # (B, T)
    voiced = torch.zeros(len(documents), longest, dtype=torch.bool)
    for row, (tokens, silent) in enumerate(documents):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        voiced[row, max(silent, 1) : len(tokens)] = True
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]  # (B, T-1, D)
    kept = voiced[:, 1:]  # logits only where a token is to be predicted
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[kept]), ids[:, 1:][kept], reduction="sum")


def new_model(recipe: Recipe, tokenizer):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.mlp,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=recipe.positions,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=recipe.embedding_std)
    return model


def train_step(model, optimizer, recipe: Recipe, step: int, tokenizer) -> dict[str, float]:
    """One update; returns the mean loss of each kind of document. No randomness beside the step's documents."""
    import torch

    rate = min(1, (step + 1) / recipe.warmup) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps))
    optimizer.param_groups[0]["lr"] = recipe.lr * rate
    losses = {}
    for kind, documents in documents_of(recipe, step, tokenizer).items():  # each kind weighs the same
        losses[kind] = 0.0
        documents.sort(key=lambda document: len(document[0]))
        voiced = sum(len(ids) - max(silent, 1) for ids, silent in documents)
        half = len(documents) // 2
        for part in (documents[:half], documents[half:]):  # two lengths: less padding
            loss = loss_of(model, part) / voiced
            loss.backward()
            losses[kind] += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    optimizer.zero_grad()
    return losses


def grow(recipe: Recipe, out: Path, watch: Callable[[int, dict], None] | None = None):
    """Train from nothing and save model and tokenizer to ``out``, a standard Hugging Face folder.

    Every ``checkpoint_every`` steps the full training state goes to ``<out>/.partial``; a killed recipe goes on from
    there and ends with the same weights, because the documents of a step depend on the recipe and the step alone.
    ``watch(step, losses)`` is called after each step. Returns (model, tokenizer).
    """
    import torch

    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer(recipe.vocabulary)
    model = new_model(recipe, tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    partial = out / ".partial"
    first = _restore(partial, recipe, model, optimizer)
    for step in range(first, recipe.steps):
        losses = train_step(model, optimizer, recipe, step, tokenizer)
        if watch:
            watch(step, losses)
        if (step + 1) % recipe.checkpoint_every == 0 and step + 1 < recipe.steps:
            _checkpoint(partial, recipe, step + 1, model, optimizer)
    model.eval().requires_grad_(False)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    shutil.rmtree(partial, ignore_errors=True)
    return model, tokenizer


def fingerprint(recipe: Recipe) -> str:
    """sha256 of everything a step depends on: the recipe's values, this module and the world."""
    sources = [Path(__file__).read_text("utf-8"), Path(world.__file__).read_text("utf-8")]
    return hashlib.sha256("\0".join([json.dumps(asdict(recipe)), *sources]).encode()).hexdigest()


def _checkpoint(partial: Path, recipe: Recipe, step: int, model, optimizer) -> None:
    from safetensors.torch import save_file

    tensors = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        tensors[f"{name}:weight"] = parameter.detach()
        tensors |= {f"{name}:{key}": state[key] for key in ("exp_avg", "exp_avg_sq", "step")}
    partial.mkdir(parents=True, exist_ok=True)
    save_file(tensors, partial / "state.new", {"step": str(step), "made_by": fingerprint(recipe)})
    os.replace(partial / "state.new", partial / "state.safetensors")


def _restore(partial: Path, recipe: Recipe, model, optimizer) -> int:
    """Load the last checkpoint of the same recipe and world; the step to go on with (0 if there is none)."""
    import torch
    from safetensors import safe_open

    file = partial / "state.safetensors"
    if not file.is_file():
        return 0
    with safe_open(file, "pt") as state:
        about = state.metadata()
        if about["made_by"] != fingerprint(recipe):
            return 0
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state.get_tensor(f"{name}:weight"))
                optimizer.state[parameter] = {
                    key: state.get_tensor(f"{name}:{key}") for key in ("exp_avg", "exp_avg_sq", "step")
                }
    return int(about["step"])
