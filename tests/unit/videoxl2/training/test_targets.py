"""What the stages are taught: labels of cells and groups, labels of (text, group) pairs, other words for the same."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from videoxl2.config import ModelSpec
from videoxl2.training.claims import PALETTES, Claim
from videoxl2.training.facts import EventFact, Facts, ObjectFact, script_facts
from videoxl2.training.label_sets import (
    FRAME_SIZES,
    SET_SIZE,
    anchor_cells,
    colour_outputs,
    pair_of,
    set_scores,
    set_weights,
    sets_of_labels,
)
from videoxl2.training.paraphrases import all_paraphrase_words, paraphrase
from videoxl2.training.perception import (
    Perceived,
    PerceptionHeads,
    frame_loss,
    perception_loss,
    place_loss,
    place_score,
    set_loss,
    targets_of,
)
from videoxl2.training.queries import claims_in, query_text
from videoxl2.training.samples import CELL_ACTIONS, CELL_COLOURS, CELL_KINDS, CELL_MOTIONS, clip_scene
from videoxl2.training.scene import COLOURS
from videoxl2.training.search_targets import batch_claims, facts_near, known_claims, pair_labels, vary

KIND, COLOUR, TROUSERS, MOTION = (sum(FRAME_SIZES[:i]) for i in range(4))
KIND_COLOUR = sum(FRAME_SIZES)
STANDING = SET_SIZE - len(CELL_KINDS)
KNOWN = torch.ones(1, dtype=torch.bool)


def table(action: str) -> np.ndarray:
    """Background, a person in red and blue who does ``action`` to the left, and a white car that stands."""
    person = (
        CELL_KINDS.index("person"),
        CELL_COLOURS.index("red"),
        CELL_COLOURS.index("blue"),
        CELL_MOTIONS.index("left"),
        CELL_ACTIONS.index(action),
    )
    car = (CELL_KINDS.index("car"), CELL_COLOURS.index("white"), 0, CELL_MOTIONS.index("still"), 0)
    return np.array([(0, 0, 0, 0, 0), person, car], np.uint8).T


@pytest.fixture
def targets() -> tuple[np.ndarray, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One group on a 4 x 4 grid: the person comes in at frame 1 and runs at frame 3, the car fills a corner."""
    owners = np.zeros((4, 4, 4), np.uint8)
    owners[:, 2:, 2:] = 2
    owners[1:3, 0, 1] = 1
    owners[3, 0, 0] = 1
    found = targets_of(owners, [table("walk")] * 3 + [table("run")], stride=2)
    return owners, found.frame_F5YX, found.cell_GHYX, found.token_GHyx


def test_frames_are_labelled_by_who_owns_a_cell(targets: tuple[np.ndarray, torch.Tensor, ...]) -> None:
    owners, frame_F5YX = targets[0], targets[1]
    person, car = table("walk")[:, 1], table("walk")[:, 2]
    assert frame_F5YX[1, :, 0, 1].tolist() == person.tolist()
    assert frame_F5YX[0, :, 3, 3].tolist() == car.tolist()
    assert frame_F5YX[3, 4, 0, 0] == CELL_ACTIONS.index("run")
    assert not frame_F5YX.permute(0, 2, 3, 1)[torch.from_numpy(owners == 0)].any()


def test_groups_hold_the_set_of_all_that_was_in_a_cell(targets: tuple[np.ndarray, torch.Tensor, ...]) -> None:
    cell = targets[2][0]
    person, red, white = CELL_KINDS.index("person"), CELL_COLOURS.index("red"), CELL_COLOURS.index("white")
    car, pairs = CELL_KINDS.index("car"), len(CELL_COLOURS)
    assert cell[KIND + person, 0, 1] and cell[COLOUR + red, 0, 1] and cell[MOTION + CELL_MOTIONS.index("left"), 0, 1]
    assert cell[KIND_COLOUR + person * pairs + red, 0, 1]
    assert not cell[KIND_COLOUR + person * pairs + white].any() and not cell[KIND_COLOUR + car * pairs + red].any()
    assert cell[KIND_COLOUR + car * pairs + white].sum() == 4
    assert not cell[:, 1].any()  # a row where nobody ever was


def test_only_those_of_the_first_frame_stand_and_at_their_foot(targets: tuple[np.ndarray, torch.Tensor, ...]) -> None:
    standing = targets[2][0, STANDING:]
    assert standing.sum() == 1
    assert standing[CELL_KINDS.index("car"), 3].sum() == 1  # the lowest row of the car, once


def test_tokens_hold_what_their_cells_hold(targets: tuple[np.ndarray, torch.Tensor, ...]) -> None:
    cell_GHYX, token_GHyx = targets[2], targets[3]
    assert token_GHyx.shape == (1, SET_SIZE, 2, 2)
    for y in range(2):
        for x in range(2):
            union = cell_GHYX[0, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].flatten(1).any(dim=1)
            assert torch.equal(token_GHyx[0, :, y, x].bool(), union)


def test_anchors() -> None:
    owners = np.array([[0, 1, 1], [1, 1, 1], [3, 0, 0]], np.uint8)
    assert anchor_cells(owners, 3) == [(1, 1, 1), (3, 2, 0)]


def test_groups_of_clips_with_different_numbers_of_actors() -> None:
    owners = np.zeros((8, 2, 2), np.uint8)
    owners[4:, 0, 0] = 2
    alone = table("walk")[:, :2]
    found = targets_of(owners, [alone] * 4 + [table("walk")] * 4, stride=2)
    assert not found.cell_GHYX[0].any()
    assert found.cell_GHYX[1, KIND + CELL_KINDS.index("car"), 0, 0]


def test_a_right_reading_scores_one_and_costs_little(targets: tuple[np.ndarray, torch.Tensor, ...]) -> None:
    sets = targets[3]
    right = (sets * 2 - 1) * 12
    scores = set_scores(right, sets)
    assert {name for name, value in scores.items() if value == 1.0} >= {"kind", "colour", "kind+colour", "standing"}
    assert max(set_scores(-right, sets).values()) == 0.0
    assert float(set_loss(right, sets, KNOWN)) < 0.1 < 100 < float(set_loss(-right, sets, KNOWN))


def test_an_action_that_is_missed_costs_more_than_a_colour(targets: tuple[np.ndarray, torch.Tensor, ...]) -> None:
    sets = targets[3]

    def cost(missed: int) -> float:
        """How much more it costs to be wrong about one output."""
        right = torch.where(sets > 0, 9.0, -9.0)
        wrong = right.clone()
        wrong[:, missed] *= -1
        return float(set_loss(wrong, sets, KNOWN) - set_loss(right, sets, KNOWN))

    actions = KIND_COLOUR - len(CELL_ACTIONS)
    run, red = actions + CELL_ACTIONS.index("run"), COLOUR + CELL_COLOURS.index("red")
    assert set_weights().shape == (SET_SIZE,)
    assert set(set_weights()[:actions].tolist()) == {1.0} and float(set_weights()[run]) > 1.0
    assert cost(run) == pytest.approx(float(set_weights()[run]) * cost(red), rel=1e-3)


def person(object_id: str, shirt: str, *visible: tuple[float, float]) -> ObjectFact:
    return ObjectFact(object_id, "person", {"shirt": shirt, "trousers": "blue"}, visible, (), True)


def test_pairs_are_true_false_or_not_certain() -> None:
    facts = Facts(
        "street",
        0.0,
        20.0,
        objects=(person("a", "red", (0.0, 4.5)), person("b", "green", (0.0, 20.0))),
        events=(EventFact("event-1", "run", "a", None, 1.0, 3.0, False),),
        doubtful_objects=(person("c", "red", (12.0, 13.0)),),
        doubtful_events=(EventFact("event-2", "run", "b", None, 16.0, 16.4, False),),
    )
    spans = [[(4.0 * i, 4.0 * i + 4.0) for i in range(5)]]
    claims = [Claim("person", "red"), Claim("person", "red", action="run"), Claim("person", "green", action="run")]
    labels = pair_labels([*claims, Claim("car")], [facts], spans)
    assert labels.tolist() == [
        [1, -1, 0, -1, 0],  # half a second is too short, and somebody too small may be in red
        [1, 0, 0, 0, 0],
        [0, 0, 0, 0, -1],
        [0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("seed", range(6))
def test_pairs_are_the_same_by_all_the_facts_and_by_those_near(seed: int) -> None:
    facts = script_facts(clip_scene(seed, duration_s=120.0, events_per_minute=20.0))
    # Half of what happens is made doubtful, so that it counts too.
    facts = replace(facts, events=facts.events[::2], doubtful_events=(*facts.events[1::2], *facts.doubtful_events))
    claims = sorted(claims_in(facts), key=repr)
    claims += [vary(claim, np.random.default_rng(i)) for i, claim in enumerate(claims)]
    spans = [(float(t), t + 4.0) for t in range(0, 120, 4)]
    plain = [[plain_label(claim, facts, span) for span in spans] for claim in claims]
    assert pair_labels(claims, [facts], [spans]).tolist() == plain
    alone = [pair_labels(claims, [facts], [[span]]) for span in spans]
    assert np.concatenate(alone, axis=1).tolist() == plain
    assert {-1, 0, 1} == {label for row in plain for label in row}
    assert len(facts_near(facts, spans[7]).events) < len(facts.events) / 2


def plain_label(claim: Claim, facts: Facts, span: tuple[float, float]) -> int:
    def overlap(interval: tuple[float, float]) -> float:
        return min(span[1], interval[1]) - max(span[0], interval[0])

    seen = max(map(overlap, claim.intervals(facts)), default=0.0)
    if seen >= 0.9:
        return 1
    return -1 if seen > 0 or any(overlap(one) > 0 for one in claim.doubtful_intervals(facts)) else 0


def test_pairs_of_several_clips_stand_side_by_side() -> None:
    empty = Facts("gate", 0.0, 8.0, (), ())
    full = Facts("gate", 0.0, 8.0, (person("a", "red", (0.0, 8.0)),), ())
    spans = [(0.0, 4.0), (4.0, 8.0)]
    assert pair_labels([Claim("person", "red")], [empty, full], [spans, spans]).tolist() == [[0, 0, 1, 1]]


def test_half_of_the_claims_are_shown_and_none_comes_twice_as_true() -> None:
    facts = Facts("gate", 0.0, 8.0, (person("a", "red", (0.0, 8.0)), person("b", "green", (0.0, 8.0))), ())
    known = known_claims([facts], [[(0.0, 4.0), (4.0, 8.0)]])
    assert Claim("person", "red") in known.shown and not known.elsewhere
    claims = batch_claims(known, 12, np.random.default_rng(2))
    true = [claim for claim in claims if claim.is_true(facts)]
    assert len(claims) == 12 and 2 <= len(true) <= 7
    nothing = known_claims([Facts("gate", 0.0, 8.0, (), ())], [[(0.0, 4.0)]])
    assert nothing.shown == nothing.elsewhere == () and len(batch_claims(nothing, 6, np.random.default_rng(2))) == 6


def test_no_text_that_differs_in_a_word_names_what_is_kept_for_the_test() -> None:
    facts = Facts("gate", 0.0, 60.0, tuple(person(f"p{i}", c, (0.0, 50.0)) for i, c in enumerate(("red", "white"))), ())
    known = known_claims([facts], [[(0.0, 4.0)]])
    claims = {claim for seed in range(60) for claim in batch_claims(known, 24, np.random.default_rng(seed))}
    below = {claim.trousers for claim in claims if claim.colour == "red" and claim.trousers is not None}
    assert len(claims) > 40 and len(below) > 2 and "brown" not in below
    assert all(claim.is_allowed("train") for claim in claims)


def test_what_holds_at_other_times_of_a_long_clip_does_not_crowd_out_what_is_shown() -> None:
    colours = [colour for colour in PALETTES["person"] if colour != "red"]
    others = [person(f"o{i}", colour, (40.0 + i, 60.0)) for i, colour in enumerate(colours)]
    facts = Facts("gate", 0.0, 60.0, (person("a", "red", (0.0, 8.0)), *others), ())
    known = known_claims([facts], [[(0.0, 4.0), (4.0, 8.0)]])
    assert Claim("person", "red") in known.shown
    assert {Claim("person", colour) for colour in colours} <= set(known.elsewhere)
    for seed in range(20):
        claims = batch_claims(known, 16, np.random.default_rng(seed))
        assert len(claims) == 16 and set(known.shown) <= set(claims)
        assert len(set(claims) & set(known.elsewhere)) >= 2


def test_a_varied_claim_has_the_words_of_its_kind() -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        claim = vary(Claim("person", "red", "blue", "run"), rng)
        assert claim.kind == "person" and claim.colour in PALETTES["person"]
        changed = (claim.colour != "red") + (claim.trousers != "blue") + (claim.action != "run")
        assert changed <= 1


def colours_in(text: str) -> list[str]:
    return re.findall(rf"\b(?:{'|'.join(COLOURS)})\b", text.replace("gray", "grey"))


def test_a_paraphrase_keeps_every_colour() -> None:
    rng = np.random.default_rng(0)
    claims = [Claim(kind, colour) for kind, palette in PALETTES.items() for colour in palette]
    claims += [Claim("person", shirt, "grey") for shirt in PALETTES["person"]]
    claims += [Claim("person", "red", "blue", action) for action in ("run", "fall", "drop", "loiter", "meet")]
    changed = 0
    for claim in claims:
        text = query_text(claim)
        for _ in range(30):
            other = paraphrase(text, rng)
            assert colours_in(other) == colours_in(text), (text, other)
            assert "{" not in other and "  " not in other
            changed += other != text
    assert changed > 10 * len(claims)


def test_words_of_paraphrases_are_listed() -> None:
    words = all_paraphrase_words()
    assert {"suitcase", "sprinting", "show me", "wearing"} <= set(words)
    assert list(words) == sorted(set(words))


def test_nothing_is_learned_of_colours_that_are_not_true(targets: tuple[np.ndarray, torch.Tensor, ...]) -> None:
    """Neither alone nor in pairs; kinds and actions are learned as ever."""
    sets = targets[3]
    logits = torch.zeros_like(sets, requires_grad=True)
    set_loss(logits, sets, ~KNOWN).backward()
    is_learned = logits.grad.abs().sum((0, 2, 3)) > 0
    labels = range(SET_SIZE)
    of_colour = [output for output in labels if bool(colour_outputs()[output])]
    assert COLOUR + CELL_COLOURS.index("red") in of_colour and KIND_COLOUR in of_colour
    assert KIND not in of_colour and KIND_COLOUR - len(CELL_ACTIONS) not in of_colour
    assert [output for output in labels if not bool(is_learned[output])] == of_colour


def test_nothing_is_learned_of_what_is_kept_for_the_test() -> None:
    """Brown trousers under a red shirt are not denied, neither in the set of a cell nor by the frame's own labels."""
    labels_F5YX = torch.zeros(4, 5, 1, 1, dtype=torch.long)
    looks = (CELL_KINDS.index("person"), CELL_COLOURS.index("red"), CELL_COLOURS.index("grey"), 1, 3)
    labels_F5YX[:, :, 0, 0] = torch.tensor(looks)
    sets_GHYX = sets_of_labels(labels_F5YX[:1, :, 0, 0])[:, :, None, None]
    of_set = torch.zeros_like(sets_GHYX, requires_grad=True)
    set_loss(of_set, sets_GHYX, KNOWN).backward()
    of_frame = torch.zeros(4, sum(FRAME_SIZES), 1, 1, requires_grad=True)
    frame_loss(of_frame, labels_F5YX, KNOWN).backward()
    assert of_set.grad is not None and of_frame.grad is not None
    for gradient in (of_set.grad.sum((0, 2, 3)), of_frame.grad.sum((0, 2, 3))):
        told = {name: float(gradient[TROUSERS + CELL_COLOURS.index(name)]) for name in ("brown", "blue", "grey")}
        assert told["brown"] == 0.0 and told["blue"] > 0.0 > told["grey"]
    pair = pair_of(1, "red", 2, "brown")
    assert float(of_set.grad[0, pair]) == 0.0 != float(of_set.grad[0, pair_of(1, "red", 2, "blue")])


def test_recoloured_frames_teach_the_rest(small_spec: ModelSpec) -> None:
    torch.manual_seed(0)
    heads = PerceptionHeads(small_spec)
    grid = small_spec.dts.grid
    owners = np.ones((8, grid, grid), np.uint8)
    seen = Perceived(
        torch.randn(8, small_spec.vision.width, grid, grid),
        torch.randn(2, grid * grid, small_spec.dts.channels),
        torch.randn(2, small_spec.tokens_per_group, small_spec.language.width),
    )

    def gradients(coloured: list[bool]) -> torch.Tensor:
        heads.zero_grad()
        made = targets_of(owners, [table("walk")] * 8, stride=2, coloured_G=np.asarray(coloured))
        perception_loss(heads, seen, made)["frame"].backward()
        return torch.stack([part.abs().sum() for part in heads.frame.weight.grad.split(FRAME_SIZES)])

    assert bool((gradients([True, False]) > 0).all())
    assert (gradients([False, False]) > 0).tolist() == [True, False, False, True, True]


def test_a_token_is_taught_where_it_is_most_of_all_one_that_shows_something() -> None:
    sets_GHyx = torch.zeros(2, 3, 2, 2)
    sets_GHyx[1, 0, 0, 1] = 1  # row 0, column 1: token 1
    told_PN = torch.tensor([[1.0, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]])  # rows, then columns
    right_GPN = 20.0 * told_PN.expand(2, 4, 4)
    assert float(place_loss(right_GPN, sets_GHyx)) < 1e-6 and place_score(right_GPN, sets_GHyx) == 1.0
    assert float(place_loss(torch.zeros(2, 4, 4), sets_GHyx)) == pytest.approx(np.log(2), rel=1e-5)
    losses, scores = [], []
    for token in (1, 2):
        turned = right_GPN.clone()
        turned[1, token, 2:] = turned[1, token, 2:].flip(0)
        losses.append(float(place_loss(turned, sets_GHyx)))
        scores.append(place_score(turned, sets_GHyx))
    assert losses[0] > 10 * losses[1] > 0
    assert scores == [0.0, 1.0]
