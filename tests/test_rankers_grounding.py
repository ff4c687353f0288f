"""The grounding ranker against plain beam search, embeddings and distances."""

import plain_ranks
import pytest
import torch
from toy import write_domains

from fedecider.adapter import Adapter
from fedecider.direction import LowRank
from fedecider.domains import read_domain
from fedecider.engine.backbone import load
from fedecider.prompts import Catalogue, make_template
from fedecider.rankers.grounding import embed_titles, generate_titles, grounding_ranks


@pytest.fixture(scope="module")
def adapter():
    with Adapter(load("tiny", "cpu", "float64"), 2, 4, ["q_proj", "v_proj"], 1) as adapter:
        generator = torch.Generator().manual_seed(0)
        adapter.load(
            {
                name: LowRank(torch.randn(pair.B.shape, generator=generator) * 0.3, pair.A)
                for name, pair in adapter.initial.items()
            }
        )
        yield adapter


@pytest.fixture(params=["history", "instruction"])
def catalogue(request, adapter, tmp_path):
    write_domains(tmp_path, ["books"])
    backbone = adapter.backbone
    template = make_template(request.param, backbone.tokenizer, backbone.start)
    return Catalogue(read_domain(tmp_path / "books"), template)


def test_generated_titles_are_those_of_plain_beam_search(adapter, catalogue):
    """The shared prompt cache changes nothing; prompts of unlike lengths share a batch."""
    backbone, end = adapter.backbone, catalogue.template.end
    users = sorted(catalogue.domain.test)[:5]
    prompts = [catalogue.prompt(user, "test", 1 + n) for n, user in enumerate(users)]
    prompts.append([backbone.start])
    generated = generate_titles(adapter, prompts, end, 3, 5, batch=4)
    for prompt, title in zip(prompts, generated, strict=True):
        assert title == plain_ranks.best_title(backbone.model, prompt, end, 3, 5)
        assert 1 <= len(title) <= 6


@torch.no_grad()
def test_title_embeddings_are_the_untuned_bases_last_token(adapter):
    titles = [[30, 31, 32], [40], [50, 51]]
    expected = plain_ranks.embeddings(plain_ranks.plain_model(), adapter.backbone.start, titles)
    for cached in (False, True):
        computed = embed_titles(adapter, titles, cached)
        assert (computed - expected.float()).abs().max() < 1e-5


def test_grounding_ranks_by_distance_with_ties_against():
    catalogue = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [9.0, 9.0]])
    generated = torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.9, 0.0]])
    assert grounding_ranks(generated, catalogue, [0, 1, 3]) == [1, 3, 4]
