"""Promise: the tiny world fits its tokenizer token for token, its questions need reading, and its demonstrator never invents."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from helpers_algorithms import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from memfactory.common.bank_prompts import BANK_PROMPTS
from memfactory.common.errors import ConfigError
from memfactory.common.prompts import NO_MEMORY, PROMPTS, blocks, fill, user
from memfactory.data.generators.demonstrator import FORGETFUL, MILD, Habits, answer, demonstrations, echo_row, memory_text, play, update
from memfactory.data.generators.synth_facts import FACT_TOKENS, NAMES, Fact, draw_episode, synth_facts
from memfactory.data.generators.world import NEW_NAMES, PERSON_RELATIONS, RELATIONS, TRAIN_NAMES, VALUES, words
from memfactory.data.tiny_tokenizer import ASSISTANT, END_OF_TURN, NUM_RESERVED, USER, make_tiny_tokenizer
from memfactory.judges.exact import boxed_em

SPACE_MARK = "\u2581"
"""The tokenizer's own sign for a space."""
ORDINARY = st.text(alphabet=st.characters(exclude_characters=SPACE_MARK, exclude_categories=["Cs"]), max_size=30)
PIECES = st.sampled_from(words()) | st.sampled_from(["\n", " ", ""]) | st.sampled_from(["zzz", "é", "😀", "\t"])
WORDS = st.lists(PIECES, max_size=12).flatmap(lambda pieces: st.sampled_from([" ", "\n", ""]).map(lambda between: between.join(pieces)))


def ids_of(text: str) -> list[int]:
    return tiny_tokenizer().encode(text)


def same_up_to_spaces(text: str) -> str:
    """What a round trip keeps: all but leading spaces and spaces around newlines."""
    return re.sub(" *\n *", "\n", text).lstrip(" ")


# The tokenizer


def test_every_word_of_the_world_is_one_token_of_its_own() -> None:
    found = [ids_of(word) for word in words()]
    assert [word for word, ids in zip(words(), found, strict=True) if len(ids) != 1] == []
    assert len({ids[0] for ids in found}) == len(words())
    assert ids_of(" ".join(words())) == [ids[0] for ids in found]


def test_every_fixed_block_is_one_token_of_its_own() -> None:
    bank = [BANK_PROMPTS[name] for name in ("extract_lines", "manage_lines", "answer_from_memories")]
    pieces = {NO_MEMORY, *(piece for template in [*PROMPTS.values(), *bank] for piece in blocks(template))}
    found = {piece: ids_of(piece) for piece in pieces}
    assert {len(ids) for ids in found.values()} == {1}
    assert len({ids[0] for ids in found.values()}) == len(pieces)


@pytest.mark.parametrize("template", PROMPTS.values(), ids=PROMPTS)
def test_blocks_stay_single_tokens_inside_the_chat_template(template: str) -> None:
    slots = {"question": "city alice ?", "memory": "job bob nurse .", "section": "pet carol cat . boss bob zoe ."}
    present = {name: text for name, text in slots.items() if f"<<{name}>>" in template}
    found = tiny_tokenizer().apply_chat_template(user(fill(template, **present)), add_generation_prompt=True, return_dict=False)
    expected = ids_of(USER)
    for piece in re.split(r"(<<\w+>>)", template):
        expected += ids_of(present.get(piece[2:-2], piece)) if piece else []
    assert found == [*expected, *ids_of(ASSISTANT)]
    assert len(found) == 2 + len(blocks(template)) + sum(len(text.split()) for text in present.values())


@given(text=ORDINARY | WORDS)
@settings(max_examples=100, deadline=None)
def test_any_text_round_trips_up_to_spaces_at_line_ends(text: str) -> None:
    clean = same_up_to_spaces(text)
    assert same_up_to_spaces(tiny_tokenizer().decode(ids_of(text))) == clean
    assert tiny_tokenizer().decode(ids_of(clean)) == clean


@pytest.mark.parametrize(("text", "back"), [(f"alice{SPACE_MARK}bob", "alice bob"), (f"{NO_MEMORY}.", f"{NO_MEMORY} .")])
def test_two_known_limits_of_the_round_trip_stay_the_only_change(text: str, back: str) -> None:
    assert tiny_tokenizer().decode(ids_of(text)) == back


@given(text=st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_no_text_has_an_unknown_token(text: str) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.unk_token_id is None
    assert None not in tokenizer.convert_ids_to_tokens(ids_of(text))
    assert not text.strip(f" {SPACE_MARK}") or ids_of(text)


def test_tokenizer_is_the_same_each_time_and_keeps_rows_in_reserve() -> None:
    again = make_tiny_tokenizer()
    assert again.get_vocab() == tiny_tokenizer().get_vocab()
    assert [len(again.encode(f"<|reserved_{n}|>")) for n in range(11, NUM_RESERVED)] == [1] * (NUM_RESERVED - 11)
    assert again.eos_token == END_OF_TURN and again.pad_token_id != again.eos_token_id


# The questions


def parse(text: str) -> list[Fact]:
    """Facts as a reader sees them."""
    parts = text.split()
    assert parts[3::4] == ["."] * (len(parts) // 4) and len(parts) % 4 == 0
    return [Fact(*parts[at : at + 3]) for at in range(0, len(parts), 4)]


def solve(context: str, question: str) -> str:
    """An oracle: follow the question's relations from the person back to the value."""
    table = {(fact.relation, fact.person): fact.value for fact in parse(context)}
    *relations, value, mark = question.split()
    assert mark == "?"
    for relation in reversed(relations):
        value = table[relation, value]
    return value


def test_same_seed_same_set_another_seed_another_set() -> None:
    assert synth_facts(20, seed=3) == synth_facts(20, seed=3)
    assert all(a["context"] != b["context"] for a, b in zip(synth_facts(20, seed=3), synth_facts(20, seed=4), strict=True))


def test_a_smaller_set_is_the_beginning_of_a_larger_one() -> None:
    assert synth_facts(40, seed=5)[:15] == synth_facts(15, seed=5)


@pytest.mark.parametrize("names", NAMES)
def test_an_oracle_answers_every_question(names: str) -> None:
    rows = synth_facts(300, seed=6, names=names, chunks=(1, 2, 8))
    assert [row["index"] for row in rows if [solve(row["context"], row["input"])] != row["answers"]] == []


def test_a_guess_without_the_context_is_at_chance() -> None:
    rows = [row for row in synth_facts(3000, seed=7) if row["input"].split()[0] in VALUES]
    half = len(rows) // 2
    best: dict[str, Counter[str]] = {}
    for row in rows[:half]:
        best.setdefault(row["input"].split()[0], Counter())[row["answers"][0]] += 1
    right = sum(best[row["input"].split()[0]].most_common(1)[0][0] == row["answers"][0] for row in rows[half:])
    assert stats.binomtest(right, len(rows) - half, 1 / 16).pvalue > 0.01


def test_gold_facts_are_anywhere_in_the_text() -> None:
    counts: Counter[int] = Counter()
    for index in range(1500):
        episode = draw_episode(random.Random(f"positions/{index}"), chunks=3)
        counts.update(episode.facts.index(fact) for fact in episode.gold)
    assert sorted(counts) == list(range(12))
    assert stats.chisquare(list(counts.values())).pvalue > 0.01


@given(seed=st.integers(0, 10**6), chunks=st.integers(1, 16), two_hop=st.sampled_from([0.0, 1.0]))
@settings(max_examples=60, deadline=None)
def test_an_episode_is_whole_and_unambiguous(seed: int, chunks: int, two_hop: float) -> None:
    episode = draw_episode(random.Random(seed), chunks, two_hop=two_hop)
    keys = [(fact.relation, fact.person) for fact in episode.facts]
    assert len(set(keys)) == len(keys) == 4 * chunks
    places = [episode.facts.index(fact) for fact in episode.gold]
    assert places == sorted(places) and len(places) == (2 if two_hop else 1)
    assert all(fact.value != fact.person for fact in episode.facts)
    assert [len(chunk) for chunk in episode.chunks] == [4] * chunks


def test_second_hop_asks_about_the_person_whom_the_first_hop_names() -> None:
    episode = draw_episode(random.Random(0), chunks=3, two_hop=1.0)
    first, second = episode.gold
    assert first.relation in PERSON_RELATIONS and second.relation in VALUES
    assert first.value == second.person and second.value == episode.answer
    assert episode.question == f"{second.relation} {first.relation} {first.person} ?"


def test_people_of_training_and_of_held_out_questions_never_mix() -> None:
    assert not set(TRAIN_NAMES) & set(NEW_NAMES)
    train = " ".join(f"{row['context']} {row['input']}" for row in synth_facts(200, names="train")).split()
    new = " ".join(f"{row['context']} {row['input']}" for row in synth_facts(200, names="new")).split()
    assert not set(train) & set(NEW_NAMES) and not set(new) & set(TRAIN_NAMES)


def test_every_chunk_is_sixteen_tokens() -> None:
    for row in synth_facts(60, seed=8, names="all"):
        ids, facts = ids_of(row["context"]), row["context"].split(" . ")
        assert len(ids) == 16 * row["num_chunks"] == FACT_TOKENS * len(facts)
        assert [tiny_tokenizer().decode(ids[at : at + 16])[-1] for at in range(0, len(ids), 16)] == ["."] * row["num_chunks"]


def test_share_of_two_hop_questions_is_as_asked() -> None:
    hops = Counter(row["hops"] for row in synth_facts(1000, seed=9, two_hop=0.35))
    assert stats.binomtest(hops[2], 1000, 0.35).pvalue > 0.01
    assert {row["hops"] for row in synth_facts(30, two_hop=0.0)} == {1}


@pytest.mark.parametrize("options", [{"names": "old"}, {"chunks": (0,)}, {"chunks": (2, 60)}, {"chunks": (30,), "names": "new"}])
def test_options_that_do_not_fit_the_world_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        synth_facts(1, **options)


def test_a_text_too_short_for_two_hops_is_refused_clearly() -> None:
    with pytest.raises(ConfigError):
        synth_facts(20, chunks=(1,), facts_per_chunk=1, two_hop=1.0)


# The demonstrator


def facts_in(text: str) -> list[Fact]:
    return [] if text == NO_MEMORY else parse(text)


def sections_of(content: str) -> dict[str, str]:
    """The texts between the tags of a prompt."""
    return {
        tag: re.search(f"<{tag}>\n(.*?)\n</{tag}>", content, re.S)[1] for tag in ("problem", "memory", "section") if f"<{tag}>" in content
    }


@given(seed=st.integers(0, 10**6), habits=st.sampled_from([MILD, FORGETFUL, Habits(1, 1, 1, 1), Habits(0.9, 0.9, 0.9, 0.9, capacity=2)]))
@settings(max_examples=80, deadline=None)
def test_memory_never_exceeds_capacity_and_holds_only_what_was_in_view(seed: int, habits: Habits) -> None:
    rng = random.Random(seed)
    episode = draw_episode(rng, chunks=rng.randint(1, 5), names=NAMES["all"])
    *reading, last = play(rng, episode, habits)
    memory = NO_MEMORY
    for row in reading:
        view = sections_of(row["messages"][0]["content"])
        assert view["memory"] == memory and view["problem"] == episode.question
        memory = row["response"]
        assert set(facts_in(memory)) <= {*facts_in(view["memory"]), *facts_in(view["section"])}
        assert len(facts_in(memory)) <= habits.capacity
    assert sections_of(last["messages"][0]["content"]) == {"problem": episode.question, "memory": memory}


@given(seed=st.integers(0, 10**6), habits=st.sampled_from([MILD, FORGETFUL]))
@settings(max_examples=80, deadline=None)
def test_it_says_unknown_exactly_when_a_gold_fact_is_missing(seed: int, habits: Habits) -> None:
    rng = random.Random(seed)
    episode = draw_episode(rng, chunks=2)
    *_, last = play(rng, episode, habits)
    known = set(episode.gold) <= set(facts_in(sections_of(last["messages"][0]["content"])["memory"]))
    assert (last["response"] == "\\boxed{ unknown }") is not known
    assert boxed_em(last["response"], [episode.answer]) == float(known)


def test_perfect_habits_always_answer_and_read_all_sections_in_order() -> None:
    perfect = Habits(write=1, write_irrelevant=0, keep=1, keep_irrelevant=0)
    for seed in range(60):
        rng = random.Random(seed)
        episode = draw_episode(rng, chunks=6)
        *reading, last = play(rng, episode, perfect)
        assert [sections_of(row["messages"][0]["content"])["section"] for row in reading] == [memory_text(list(c)) for c in episode.chunks]
        assert boxed_em(last["response"], [episode.answer]) == 1.0


def test_second_hop_is_relevant_only_once_the_first_is_known() -> None:
    episode = draw_episode(random.Random(0), chunks=2, two_hop=1.0)
    first, second = episode.gold
    perfect = Habits(write=1, write_irrelevant=0, keep=1, keep_irrelevant=0)
    assert update(random.Random(0), episode, [], (second,), perfect) == []
    assert update(random.Random(0), episode, [first], (second,), perfect) == [first, second]
    assert update(random.Random(0), episode, [], (first, second), perfect) == [first, second]


def test_irrelevant_facts_are_the_first_to_go_and_the_oldest_of_them() -> None:
    episode = draw_episode(random.Random(1), chunks=2, two_hop=0.0)
    old, older, *new = [fact for fact in episode.facts if fact not in episode.gold][:4]
    keep_all = Habits(1, 1, 1, 1, capacity=3)
    assert update(random.Random(0), episode, [*episode.gold, old, older], tuple(new), keep_all) == [*episode.gold, *new]


def test_answer_restates_the_facts_it_follows_from() -> None:
    episode = draw_episode(random.Random(2), chunks=2, two_hop=1.0)
    first, second = episode.gold
    assert answer(episode, [second, first]) == f"{first.text} {second.text} \\boxed{{ {second.value} }}"
    assert answer(episode, [second]) == answer(episode, []) == "\\boxed{ unknown }"


@pytest.mark.parametrize("seed", range(3))
def test_copying_exercises_copy(seed: int) -> None:
    rng = random.Random(seed)
    for row in (echo_row(rng) for _ in range(100)):
        given_text, said = row["messages"][0]["content"], row["response"]
        assert given_text == said or sorted(fact.text for fact in parse(given_text)) == sorted(fact.text for fact in parse(said))


def test_stream_of_demonstrations_repeats_with_its_seed() -> None:
    def first(seed: int) -> list[object]:
        stream = demonstrations(seed, FORGETFUL)
        return [next(stream) for _ in range(300)]

    assert first(1) == first(1) != first(2)
    assert {row["stage"] for row in first(1)} == {"memory", "answer", "echo"}


def test_every_value_is_possible_and_no_word_has_two_meanings() -> None:
    kinds = [RELATIONS, TRAIN_NAMES, NEW_NAMES, *VALUES.values()]
    everything = [word for kind in kinds for word in kind]
    assert len(everything) == len(set(everything))
    assert {len(values) for values in VALUES.values()} == {16}
