"""Rendered questions: every answer follows from the facts, read by a checker that shares no code with the asker."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from videoxl2.training.facts import Facts, from_dict, script_facts
from videoxl2.training.qa import QA, blind_baseline, text_baseline
from videoxl2.training.queries import SearchQuery, search_queries
from videoxl2.training.questions import questions_of
from videoxl2.training.random_scenes import CAMERA_KINDS, random_scene
from videoxl2.training.splits import Split, first_split

COLOURS = "red|orange|yellow|green|blue|purple|pink|brown|white|grey|silver|black"
VERBS = {
    "walk": "walks walking walk",
    "run": "runs running run",
    "stop": "stops and waits/standing and waiting/stop and wait",
    "loiter": "loiters loitering loiter",
    "fall": "falls down/falling down/fall down",
    "drop": "drops/dropping/drop",
    "pick": "picks up/picking up/pick up",
    "meet": "meets meeting meet",
    "wrong_way": "drives the wrong way/driving the wrong way/drive the wrong way",
    "drive": "drives driving drive",
    "park": "parks parking park",
    "ride": "rides past/riding past/ride past",
    "open": "is left open/left open/stay open",
    "smoke": "rises rising rise",
}
FORMS = {form: kind for kind, text in VERBS.items() for form in (text.split("/") if "/" in text else text.split())}
VERB = "|".join(sorted(FORMS, key=len, reverse=True))
THING = (
    rf"(?:(?:a|an|the) )?(?:(?P<colour{{0}}>{COLOURS}) )?"
    r"(?P<noun{0}>person|somebody|cyclist|car|van|dog|bag|door|smoke)"
    rf"(?: in (?:a|an) (?P<shirt{{0}}>{COLOURS}) shirt)?(?: and (?P<trousers{{0}}>{COLOURS}) trousers)?"
)
Json = dict[str, Any]
# Who does the second also does the first: such a first is not to be denied.
ALSO = {"walk": {"stop", "loiter", "fall", "drop", "pick", "meet"}, "stop": {"loiter", "fall", "drop", "pick", "meet"}}


def thing(number: int = 0) -> str:
    return THING.format(number)


def fits(item: Json, found: dict[str, str | None], number: int = 0) -> bool:
    """Whether an object is what a parsed phrase says."""
    noun = {"somebody": "person", "cyclist": "bicycle"}.get(str(found[f"noun{number}"]), found[f"noun{number}"])
    look = item["attributes"]
    colour = found[f"shirt{number}"] or found[f"colour{number}"]
    trousers = found[f"trousers{number}"]
    tint = look.get("shirt") or look.get("colour")
    return item["kind"] == noun and colour in (None, tint) and trousers in (None, look.get("trousers"))


def deeds(facts: Json, text: str) -> list[Json]:
    """Events that a phrase "a person in a red shirt runs" describes."""
    match = re.fullmatch(rf"{thing()} (?P<verb>{VERB})(?P<rest>.*)", text)
    assert match is not None, text
    kind = FORMS[match["verb"]]
    found = []
    for event in facts["events"]:
        roles = [event["object_id"]] + ([event["target_id"]] if kind == "meet" else [])
        if event["kind"] == kind and any(fits(by_id(facts, r), match.groupdict()) for r in roles):
            if target := re.fullmatch(rf" {thing(1)}", match["rest"]):
                others = [event["object_id"], event["target_id"]]
                if not any(fits(by_id(facts, i), target.groupdict(), 1) for i in others if i):
                    continue
            found.append(event)
    return found


def by_id(facts: Json, object_id: str) -> Json:
    return next(o for o in facts["objects"] + facts["doubtful_objects"] if o["object_id"] == object_id)


def lowered(text: str) -> str:
    return text[0].lower() + text[1:]


def seconds(text: str) -> tuple[float, float]:
    if match := re.search(r"(\d+):(\d\d) to (\d+):(\d\d)", text):
        a, b, c, d = map(int, match.groups())
        return 60.0 * a + b, 60.0 * c + d
    match = re.search(r"(\d+) to (\d+) seconds", text)
    assert match is not None, text
    return float(match[1]), float(match[2])


def colour_is(facts: Json, item: QA, answer: str) -> bool:
    """Whether everything that the question may mean has this colour."""
    text = item.question.split("\n")[0]
    part = (
        "trousers" if "trousers" in text else "shirt" if "shirt of" in text or "colour is the shirt" in text else None
    )
    if match := re.search(rf"(?:that|[Ww]ho) (?P<verb>{VERB})", text):
        noun = re.search(r"(?:is the|The) (cyclist|car|van|dog|bag) that", text)
        who = noun[1] if noun else "person"
        objects = [by_id(facts, event["object_id"]) for event in deeds(facts, f"a {who} {match['verb']}")]
    else:
        phrase = re.search(rf"of ({thing()})\?", text) or re.search(rf"(?:is|does) (the {thing()})(?: have)?\?", text)
        phrase = phrase or re.search(rf"shirt of ({thing()}) have", text)
        assert phrase is not None, text
        objects = [o for o in facts["objects"] + facts["doubtful_objects"] if fits(o, phrase.groupdict())]
    tints = {o["attributes"].get(part or "colour", o["attributes"].get("shirt")) for o in objects}
    return tints == {answer}


def number(facts: Json, text: str) -> int:
    """The number that a "how many" question asks for."""
    nouns = {"people": "person", "cyclists": "bicycle", "cars": "car", "vans": "van", "dogs": "dog", "bags": "bag"}
    if match := re.search(rf"people wear an? ({COLOURS}) shirt", text):
        return sum(o["attributes"].get("shirt") == match[1] for o in facts["objects"] if o["kind"] == "person")
    if match := re.search(rf"people ({VERB})", text):
        return len({e["object_id"] for e in deeds(facts, f"a person {match[1]}")})
    kind = next(kind for noun, kind in nouns.items() if noun in text)
    objects = [o for o in facts["objects"] + facts["doubtful_objects"] if o["kind"] == kind]
    if match := re.search(r"at (\d+) seconds", text):
        at = float(match[1])
        return sum(any(low <= at < high for low, high in o["visible"]) for o in objects)
    return len(objects)


def times_of(facts: Json, text: str) -> list[tuple[float, float]]:
    """Every time that a "when" question may mean."""
    if match := re.match(rf"(?:When|At what time) does (.+?) ({VERB})(.*?)\?", text):
        return [(e["start_s"], e["end_s"]) for e in deeds(facts, f"{match[1]} {match[2]}{match[3]}")]
    match = re.match(rf"When (?:is|can) (?:{thing()}) (?:in the picture|be seen)\?", text)
    assert match is not None, text
    items = [o for o in facts["objects"] + facts["doubtful_objects"] if fits(o, match.groupdict())]
    return [(low, high) for item in items for low, high in item["visible"]]


def side_holds(facts: Json, text: str, answer: str) -> bool:
    if match := re.match(rf"Where does (.+?) ({VERB})(.*?): left", text):
        events = deeds(facts, f"{match[1]} {match[2]}{match[3]}")
        assert len(events) == 1
        item, span = by_id(facts, events[0]["object_id"]), (events[0]["start_s"], events[0]["end_s"])
    else:
        found = re.search(thing().replace("(?:(?:a|an|the) )?", "[Tt]he ", 1), text.split("picture is ")[-1])
        assert found is not None, text
        items = [o for o in facts["objects"] if fits(o, found.groupdict())]
        assert len(items) == 1, text
        item, span = items[0], (0.0, 1e9)
    seen = [s for s in item["sightings"] if span[0] <= s["time_s"] < span[1]]
    mean = sum(s["x"] for s in seen) / len(seen)
    bottom = sum(s["bottom"] for s in seen) / len(seen)
    return {
        "left": mean < 0.36,
        "middle": 0.36 < mean < 0.64,
        "right": mean > 0.64,
        "near": bottom > 0.7,
        "far": bottom < 0.65,
    }[answer]


def exists(facts: Json, text: str) -> bool:
    if text.startswith("Is a door"):
        return any(e["kind"] == "open" for e in facts["events"])
    if text.startswith("Is there smoke"):
        return any(e["kind"] == "smoke" for e in facts["events"])
    if text.startswith("Does a car or a van"):
        return any(e["kind"] == "wrong_way" for e in facts["events"])
    phrase = re.sub(r"^(Is there|Can|Does|Is) |( be seen)?\?$", "", text)
    match = re.fullmatch(thing(), phrase)
    if match is not None:
        return any(fits(item, match.groupdict()) for item in facts["objects"])
    return bool(deeds(facts, phrase))


def must_be_certain(facts: Json, text: str) -> None:
    """What is answered with no must not be a doubtful thing, nor implied by what somebody does."""
    phrase = re.sub(r"^(Is there|Can|Does|Is) |( be seen)?\?$", "", text)
    if match := re.fullmatch(rf"{thing()} (?P<verb>{VERB})(?P<rest>.*)", phrase):
        kind = FORMS[match["verb"]]
        for event in facts["events"] + facts["doubtful_events"]:
            is_implied = event["kind"] in ALSO.get(kind, ()) or (
                event in facts["doubtful_events"] and event["kind"] == kind
            )
            known = {o["object_id"] for o in facts["objects"] + facts["doubtful_objects"]}
            if is_implied and event["object_id"] in known:
                assert not fits(by_id(facts, event["object_id"]), match.groupdict()), (text, event)
    elif match := re.fullmatch(thing(), phrase):
        assert not any(fits(item, match.groupdict()) for item in facts["doubtful_objects"]), text


def told(facts: Json, answer: str) -> list[Json]:
    events: list[Json] = []
    for line in re.findall(r"[^.]+\.", answer):
        text = lowered(line.strip().rstrip("."))
        at = None
        if match := re.match(r"(\d\S* to \S+(?: seconds)?): (.*)", text):
            at, text = seconds(match[1]), match[2]
        found = deeds(facts, text)
        if at is not None:
            found = [e for e in found if abs(e["start_s"] - at[0]) <= 0.51 and abs(e["end_s"] - at[1]) <= 0.51]
        found = [e for e in found if e not in events]
        assert found, (line, facts["events"])
        events.append(found[0])
    return events


def check(facts: Json, item: QA) -> None:
    stem = item.question.split("\n")[0]
    if item.kind == "choice":
        check_choice(facts, item, stem)
    elif item.kind == "colour":
        assert colour_is(facts, item, item.answer), item
    elif item.kind == "count":
        assert number(facts, stem) == int(item.answer), item
    elif item.kind == "when":
        assert len(times_of(facts, stem)) == 1, item
        (low, high), (start, end) = times_of(facts, stem)[0], seconds(item.answer)
        assert abs(low - start) <= 0.51 and abs(high - end) <= 0.51, item
    elif item.kind == "where":
        assert side_holds(facts, stem, item.answer), item
    elif item.kind == "exists":
        assert exists(facts, stem) == (item.answer == "yes"), item
        if item.answer == "no":
            must_be_certain(facts, stem)
    elif item.kind == "order":
        check_order(facts, item)
    elif item.kind == "what":
        check_what(facts, item)
    else:
        events = [] if item.answer == "Nothing happens." else told(facts, item.answer)
        starts = [event["start_s"] for event in events]
        assert starts == sorted(starts), item
        main = [e for e in facts["events"] if e["kind"] not in ("enter", "leave")]
        assert len(events) == min(6, len(main)), item


def check_order(facts: Json, item: QA) -> None:
    def start(text: str) -> float:
        events = deeds(facts, text)
        assert len(events) == 1, (text, events)
        return float(events[0]["start_s"])

    if match := re.match(r"Which comes first: (.*), or (.*)\?", item.question):
        assert item.answer == min(match.groups(), key=start), item
    else:
        match = re.match(r"Does this happen before (.*): (.*)\?", item.question)
        assert match is not None, item
        assert item.answer == ("yes" if start(match[2]) < start(match[1]) else "no"), item


def check_what(facts: Json, item: QA) -> None:
    """Of all that happens one thing only fits the question, and the answer with it."""
    main = [e for e in facts["events"] + facts["doubtful_events"] if e["kind"] not in ("enter", "leave")]
    if match := re.fullmatch(r"What does (.*) do\?", item.question):
        who = re.fullmatch(thing(), match[1])
        assert who is not None, item
        ids = {o["object_id"] for o in facts["objects"] + facts["doubtful_objects"] if fits(o, who.groupdict())}
        meant = [event for event in main if ids & {event["object_id"], event["target_id"]}]
        said = f"{match[1]} {item.answer}"
    else:
        match = re.fullmatch(rf"Who ({VERB})(.*)\?", item.question)
        assert match is not None, item
        kinds = {FORMS[match[1]], *ALSO.get(FORMS[match[1]], ())}
        people = {o["object_id"] for o in facts["objects"] + facts["doubtful_objects"] if o["kind"] == "person"}
        meant = [event for event in main if event["kind"] in kinds and event["object_id"] in people]
        said = f"{item.answer} {match[1]}{match[2]}"
    assert deeds(facts, said) == meant and len(meant) == 1, (item, meant)


def check_choice(facts: Json, item: QA, stem: str) -> None:
    assert len(set(item.options)) == 4
    assert item.question.split("\n")[1:] == [f"{a}. {b}" for a, b in zip("ABCD", item.options, strict=True)]
    right = {"ABCD"[i] for i, option in enumerate(item.options) if is_right(facts, item, stem, option)}
    assert right == {item.answer}, (item, right)


def is_right(facts: Json, item: QA, stem: str, option: str) -> bool:
    if "colour" in stem:
        return colour_is(facts, item, option)
    if stem.startswith(("How many", "Count")):
        return number(facts, stem) == int(option)
    if stem.startswith(("When", "At what time")):
        low, high = times_of(facts, stem)[0]
        start, end = seconds(option)
        return start < high - 0.5 and end > low + 0.5
    if match := re.match(r"What does (.*) do\?", stem):
        return bool(deeds(facts, f"{match[1]} {option}"))
    if match := re.match(r"Who (.*)\?", stem):
        return bool(deeds(facts, f"{option} {match[1]}"))
    return bool(deeds(facts, option))


Asked = list[tuple[Facts, list[QA]]]


@pytest.fixture(scope="module")
def asked() -> Asked:
    result = []
    for kind in CAMERA_KINDS:
        for seed in range(56):
            rate = (0.5, 2.0, 4.0, 6.0)[seed % 4]
            facts = script_facts(random_scene(kind, seed, 48.0, "train", events_per_minute=rate))
            result.append((facts, questions_of(facts, seed, "train", per_kind=3)))
    return result


def all_questions(asked: Asked) -> list[QA]:
    return [item for _, questions in asked for item in questions]


def test_every_answer_follows_from_the_facts(asked: Asked) -> None:
    for facts, questions in asked:
        values = json.loads(json.dumps(facts.to_dict()))
        for item in questions:
            check(values, item)
    assert len(all_questions(asked)) > 5000
    told = Counter(item.question.split()[0] for item in all_questions(asked) if item.kind == "what")
    assert min(told["What"], told["Who"]) > 60, told


def test_facts_survive_json(asked: Asked) -> None:
    for facts, _ in asked[::20]:
        assert from_dict(json.loads(json.dumps(facts.to_dict()))) == facts


def test_intervals_lie_inside_the_video(asked: Asked) -> None:
    for facts, questions in asked:
        for item in questions:
            if item.interval is not None:
                assert facts.start_s <= item.interval[0] < item.interval[1] <= facts.end_s, item


def test_yes_and_no_are_balanced() -> None:
    answers: Counter[str] = Counter()
    by_action: dict[str, Counter[str]] = {}
    seed = 0
    while answers.total() < 2000:
        seed += 1
        scene = random_scene(CAMERA_KINDS[seed % 5], seed, 48.0, "train", events_per_minute=(2.0, 4.0)[seed % 2])
        for item in questions_of(script_facts(scene), seed, "train", per_kind=4):
            if item.kind == "exists":
                answers[item.answer] += 1
                verb = re.search(rf"\b({VERB})\b", item.question)
                by_action.setdefault(FORMS[verb[1]] if verb else "", Counter())[item.answer] += 1
    assert abs(answers["yes"] / answers.total() - 0.5) < 0.05, answers
    for action in ("run", "fall", "drop"):
        assert 0.25 < by_action[action]["yes"] / by_action[action].total() < 0.75, (action, by_action[action])


def test_letters_are_uniform_and_text_alone_is_of_little_use(asked: Asked) -> None:
    questions = all_questions(asked)
    letters = Counter(item.answer for item in questions if item.kind == "choice")
    assert set(letters) == set("ABCD") and max(letters.values()) < 0.32 * letters.total()
    blind = blind_baseline(questions)
    assert blind["choice"] < 0.32 and blind["exists"] < 0.55 and blind["colour"] < 0.3 and blind["when"] < 0.1
    assert blind["order"] < 0.4 and blind["where"] < 0.5 and blind["count"] < 0.5
    known = text_baseline(questions[::2], questions[1::2])
    assert known["choice"] < 0.35 and known["exists"] < 0.62 and known["colour"] < 0.35


def test_no_question_contains_its_answer_alone(asked: Asked) -> None:
    for item in all_questions(asked):
        stem = item.question.split("\n")[0]
        if item.kind in ("colour", "when", "exists", "describe", "events"):
            assert not re.search(rf"\b{re.escape(item.answer)}\b", stem.split("?")[0]) or item.kind == "colour", item
        if item.kind == "choice" and "colour" not in stem:
            right = item.options["ABCD".index(item.answer)]
            assert right.isdigit() or right not in stem, item


def words_of(text: str) -> set[tuple[str, ...]]:
    """Combinations that a text names: kind and colour and action, shirt and trousers."""
    found: set[tuple[str, ...]] = set()
    for match in re.finditer(rf"{thing()}(?: (?P<verb>{VERB})\b)?", text):
        kind = {"somebody": "person", "cyclist": "bicycle"}.get(match["noun0"], match["noun0"])
        colour = match["shirt0"] or match["colour0"]
        if colour and match["verb"]:
            found.add((kind, colour, FORMS[match["verb"]]))
        if match["shirt0"] and match["trousers0"]:
            found.add(("shirt", match["shirt0"], "trousers", match["trousers0"]))
    return found


def test_combinations_kept_for_the_test_never_occur_in_training(asked: Asked) -> None:
    for _, questions in asked:
        for item in questions:
            if item.kind in ("describe", "events", "when", "where", "order", "exists", "what"):
                for words in words_of(f"{item.question} {item.answer}"):
                    assert first_split(*words) == "train", (words, item)


def claims_of(item: QA) -> list[str]:
    """What each option says, as a sentence."""
    stem = item.question.split("\n")[0]
    if match := re.match(r"What (?:does|is) (.*?) (?:do|doing)\?", stem):
        return [f"{match[1]} {option}" for option in item.options]
    if match := re.match(r"Who (.*)\?", stem):
        return [f"{option} {match[1]}" for option in item.options]
    if match := re.match(r"What colour are the trousers of the person in an? (\w+) shirt\?", stem):
        return [f"a person in a {match[1]} shirt and {option} trousers" for option in item.options]
    return list(item.options)


def test_no_wrong_option_names_what_is_kept_for_the_test(asked: Asked) -> None:
    """Else it would be wrong whenever training offers it, and right in the test."""
    choices = [item for item in all_questions(asked) if item.kind == "choice"]
    named = [(item, words) for item in choices for claim in claims_of(item) for words in words_of(claim)]
    assert len(named) > 1000 and len({words[0] for _, words in named}) > 2
    assert "shirt" in {words[0] for _, words in named}
    for item, words in named:
        assert first_split(*words) == "train", (words, item)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_later_splits_do_show_them(split: Split) -> None:
    kept: Counter[str] = Counter()
    for kind in CAMERA_KINDS:
        for seed in range(40):
            facts = script_facts(random_scene(kind, seed, 60.0, split, events_per_minute=4.0))
            for item in questions_of(facts, seed, split):
                kept.update(first_split(*words) for words in words_of(f"{item.question} {item.answer}"))
    assert kept[split] > 20
    assert split == "test" or kept["test"] == 0


def test_search_queries_find_exactly_what_is_there() -> None:
    videos = {
        f"{kind}-{n}": script_facts(random_scene(kind, 500 + n, 90.0, "test"))
        for kind in CAMERA_KINDS
        for n in range(4)
    }
    queries = search_queries(videos, 3, 80)
    assert len(queries) == 80 == len({query.text for query in queries})
    assert sum(query.num_attributes == 2 for query in queries) == 40
    for query in queries:
        check_query(videos, query)


def check_query(videos: dict[str, Facts], query: SearchQuery) -> None:
    expected = []
    for key, facts in videos.items():
        values = json.loads(json.dumps(facts.to_dict()))
        match = re.fullmatch(thing(), query.text)
        if query.text == "smoke":
            expected += [(key, e["start_s"], e["end_s"]) for e in values["events"] if e["kind"] == "smoke"]
        elif match is not None:
            here = [o for o in values["objects"] if fits(o, match.groupdict())]
            expected += [(key, low, high) for item in here for low, high in item["visible"]]
        else:
            expected += [(key, e["start_s"], e["end_s"]) for e in deeds(values, query.text)]
    assert sorted(expected) == sorted(query.intervals), query.text
    for key, low, high in query.intervals:
        assert videos[key].start_s <= low < high <= videos[key].end_s
