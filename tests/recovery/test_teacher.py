"""Soft targets of the original on rows, and the loss that holds a model against it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diskcache import Cache

from slim.calibration.ablation import kl_divergence
from slim.core.errors import InputError, SlimError
from slim.core.reporter import SILENT, Work
from slim.data.tasks import Encoded, batches
from slim.models.load import Loaded
from slim.recovery import teacher
from slim.recovery.loss import Loss
from slim.recovery.teacher import check_vocabulary, counted_logits, soft_targets, stacked_targets, targets_of_rows
from tests.pico import FAMILIES, random_rows

ROWS = Encoded(random_rows((9, 12, 6)), 0, (3, 1, 4))


def explicit(full: torch.Tensor, other: torch.Tensor, top: int, temperature: float) -> torch.Tensor:
    """KL over `top` tokens and one bucket for all others, from two whole softmaxes, position by position."""
    found = []
    for mine, yours in zip(full.double() / temperature, other.double() / temperature, strict=True):
        p, q = mine.softmax(0), yours.softmax(0)
        best = sorted(range(len(p)), key=lambda token: -float(p[token]))[:top]
        rest = [token for token in range(len(p)) if token not in best]
        buckets = [(p[token], q[token]) for token in best] + [(p[rest].sum(), q[rest].sum())]
        found.append(sum(one * (one.log() - two.log()) for one, two in buckets))
    return torch.stack(found)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("top", [1, 5, 39])
def test_divergence_is_that_of_two_softmaxes(top: int, temperature: float) -> None:
    """In float64, at a temperature; the gradient too."""
    generator = torch.Generator().manual_seed(3)
    full, other = 3 * torch.randn(2, 7, 40, generator=generator, dtype=torch.float64)
    other.requires_grad_(True)
    taken = soft_targets(full, temperature, top)
    mine, wanted = taken.divergence(other.detach(), temperature), explicit(full, other, top, temperature)
    torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-12)
    (steep,) = torch.autograd.grad(wanted.sum(), other)
    slope = torch.ones_like(steep)
    taken.divergence(other.detach(), temperature, slope, 0.5)
    torch.testing.assert_close(slope, 1 + 0.5 * steep, rtol=1e-9, atol=1e-12)


def test_all_but_one_token_is_the_whole_divergence_and_fewer_are_at_most_that() -> None:
    """The bucket of the rest is what soft targets cannot tell apart."""
    full, other = 3 * torch.randn(2, 7, 40, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    whole = kl_divergence(full, other)
    torch.testing.assert_close(soft_targets(full, top=10_000).divergence(other), whole)
    coarse = soft_targets(full, top=3).divergence(other)
    assert (coarse <= whole).all()
    assert (coarse < whole - 1e-3).any()
    assert torch.allclose(soft_targets(full, top=3).divergence(full), torch.zeros(7, dtype=torch.float64), atol=1e-12)


def test_the_loss_mixes_the_rows_own_tokens_and_the_original() -> None:
    """By hand, in float64, with its gradient: the weight, and the square of the temperature."""
    full, other = 2 * torch.randn(2, 5, 30, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    other.requires_grad_(True)
    tokens = torch.tensor([3, 0, 29, 7, 7])
    taken = soft_targets(full, 2.0, 6)
    soft = [{"ids": taken.ids.int().numpy(), "logs": taken.logs.numpy(), "rest": taken.rest.numpy()}]
    surprise = -other.log_softmax(1).gather(1, tokens[:, None]).sum()
    wanted = 0.3 * surprise + 0.7 * 4.0 * explicit(full, other, 6, 2.0).sum()
    for loss, by_hand in (
        (Loss(0.3, 2.0), wanted),
        (Loss(), surprise),
        (Loss(0.0, 2.0), (wanted - 0.3 * surprise) / 0.7),
    ):
        found = loss(other, tokens, soft)
        torch.testing.assert_close(found, by_hand, rtol=1e-10, atol=0.0)
        slopes = [torch.autograd.grad(3 * value, other, retain_graph=True)[0] for value in (found, by_hand)]
        torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"task_weight=0\.3"):
        Loss(0.3)(other, tokens, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_counted_logits_are_those_of_a_whole_forward(pico: Callable[..., Loaded], family: str) -> None:
    """Of the positions that a mask made by hand picks, in every family; the model is left as it was."""
    loaded = pico(family)
    (batch,) = batches(ROWS, 3)
    with torch.no_grad():
        found, tokens = counted_logits(loaded.model, batch)
        whole = loaded.model(batch.ids, use_cache=False).logits
    rows = {6: (ROWS.rows[2], 4), 9: (ROWS.rows[0], 3), 12: (ROWS.rows[1], 1)}
    wanted, following = [], []
    for place, (row, start) in enumerate(rows.values()):
        wanted += [whole[place, position - 1] for position in range(start, len(row))]
        following += row[start:].tolist()
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-12, atol=1e-12)
    assert tokens.tolist() == following
    head: Any = loaded.model.get_output_embeddings()
    assert not head._forward_pre_hooks


def test_lessons_are_taken_once(pico: Callable[..., Loaded], tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row as one row alone gives them; cached ones need no model; another temperature gives others."""
    loaded = pico("llama")
    monkeypatch.setattr(teacher, "TOP", 8)
    with Cache(str(tmp_path)) as cache:
        found = targets_of_rows(loaded, ROWS, batch_size=2, cache=cache)
        for row, start, arrays in zip(ROWS.rows, ROWS.starts, found, strict=True):
            with torch.no_grad():
                logits = loaded.model(row[None], use_cache=False).logits[0, start - 1 : -1]
            wanted = soft_targets(logits, top=8)
            assert (arrays["ids"].dtype, arrays["logs"].dtype) == (np.int32, np.float32)
            assert arrays["ids"].tolist() == wanted.ids.tolist()
            np.testing.assert_allclose(arrays["logs"], wanted.logs, rtol=1e-5)
            np.testing.assert_allclose(arrays["rest"], wanted.rest, rtol=1e-5)
        monkeypatch.setattr(loaded.model, "forward", lambda *args, **kwargs: pytest.fail("asked again"))
        work = Work(SILENT, ROWS.tokens)
        again = targets_of_rows(loaded, ROWS, cache=cache, step=work.step("Asking"))
    assert (work.done, work.reused) == (ROWS.tokens, 1)
    assert stacked_targets(again, torch.device("cpu")).ids.shape == (6 + 11 + 2, 8)
    monkeypatch.undo()
    warm = targets_of_rows(loaded, ROWS, 3.0)
    assert not np.allclose(warm[0]["rest"], targets_of_rows(loaded, ROWS)[0]["rest"])


def test_an_original_without_numbers_is_named(pico: Callable[..., Loaded]) -> None:
    """With the row."""
    loaded = pico("llama")
    with torch.no_grad():
        embeddings: Any = loaded.model.get_input_embeddings()
        embeddings.weight[int(ROWS.rows[1][0])] = torch.nan
    with pytest.raises(SlimError, match=f"12 tokens that starts with .{int(ROWS.rows[1][0])}, "):
        targets_of_rows(loaded, ROWS, batch_size=1)


def test_another_tokenizer_cannot_teach(pico: Callable[..., Loaded]) -> None:
    """Named, as is a vocabulary of another size behind the same tokenizer."""
    one, other = pico("llama"), pico("qwen2")
    check_vocabulary(one, other)
    other.tokenizer.add_tokens(["<new>"])
    with pytest.raises(InputError, match=r"original='pico-llama': .*'pico-qwen2'"):
        check_vocabulary(one, other)
    with pytest.raises(InputError, match=r"original='pico-llama': .*264 tokens and 'pico-llama' 300"):
        check_vocabulary(one, pico("llama", vocab_size=300))
