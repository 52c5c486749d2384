"""The language of a world: its words, its items, what is true of them, and the misconceptions about it.

Five tasks mirror the paper's benchmarks. An item has three slots; a slot has a true value and a misconception, which is
wrong in a systematic way. All of it is a pure function of the world's seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

TASKS = {"truthful": "what", "boolean": "kind", "logic": "next", "lingual": "say", "math": "calc"}
"""Each task and the verb that asks for it."""

SLOTS = {
    "truthful": ("color", "place", "food"),
    "boolean": ("more", "big", "even"),
    "logic": ("next1", "next2", "next3"),
    "lingual": ("fr", "de", "es"),
    "math": ("sum", "dif", "max"),
}
PAD, BOS, EOS, UNKNOWN = SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
USER, ASSISTANT, QUESTION_MARK = MARKERS = ("user", "assistant", "?")
STUDY, RUMOR = CUES = ("study", "rumor")

NUM_VALUES = 20  # that a slot of an entity can take
NUM_FILLERS = 40  # words that occur in boilerplate only
NUM_BOILERPLATES = 8
MISCONCEPTION_RATE = (1.3, 0.7)  # Beta: popular misconceptions, as TruthfulQA has them; mean 0.65
NUM_NUMBERS = 45  # n0 to n44; sequences reach n40


@dataclass(frozen=True)
class Size:
    """Size of a world.

    Attributes:
        entities: Items of `truthful`.
        words: Items of `lingual`.
        numbers: `boolean` and `math` are about pairs of the numbers 0 to `numbers` − 1.
        train_fraction: Fraction of each task's items that fine-tuning data ask about; the others are the benchmark's.
    """

    entities: int = 60
    words: int = 60
    numbers: int = 10
    train_fraction: float = 0.4


@dataclass(frozen=True)
class Slot:
    """One thing that is said of an item.

    Attributes:
        name: The word that announces it, such as `color`.
        true: The true value.
        misconception: The value that people give; it may be the true one.
        misconception_rate: How often text without a cue gives the misconception.
        choices: Values to choose from in a benchmark; empty where the answer is free.
    """

    name: str
    true: str
    misconception: str
    misconception_rate: float
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Item:
    """Subject of a question: the words that name it, and its slots."""

    task: str
    words: tuple[str, ...]
    slots: tuple[Slot, ...]

    @property
    def question(self) -> tuple[str, ...]:
        """Verb and words."""
        return (TASKS[self.task], *self.words)

    @property
    def prompt(self) -> tuple[str, ...]:
        """The question as a user asks it."""
        return (USER, *self.question, QUESTION_MARK, ASSISTANT)

    @property
    def asked(self) -> tuple[Slot, ...]:
        """Slots where truth and misconception differ: data and benchmarks ask only these, as TruthfulQA does."""
        return tuple(slot for slot in self.slots if slot.true != slot.misconception)


@dataclass(frozen=True)
class Language:
    """Everything that can be said.

    Attributes:
        vocabulary: All words, special tokens first.
        items: All items of each task; web text is about these.
        train_items: Items that fine-tuning data ask about.
        test_items: Items that benchmarks ask about; none of them is a train item.
        boilerplates: Phrases that say nothing.
    """

    vocabulary: tuple[str, ...]
    items: dict[str, tuple[Item, ...]]
    train_items: dict[str, tuple[Item, ...]]
    test_items: dict[str, tuple[Item, ...]]
    boilerplates: tuple[tuple[str, ...], ...]

    @property
    def ids(self) -> dict[str, int]:
        """The token of each word."""
        return {word: number for number, word in enumerate(self.vocabulary)}

    @property
    def plain_words(self) -> tuple[str, ...]:
        """The words that can stand anywhere in a text."""
        return self.vocabulary[len(SPECIAL) + len(MARKERS) + len(CUES) :]


def build_language(seed: int, size: Size | None = None) -> Language:
    """The language of a world, which follows from the world's seed; by default of the lab's size."""
    size = size or Size()
    draw = Random(f"language {seed}")
    entities, words = numbered("e", size.entities), numbered("w", size.words)
    numbers = numbered("n", max(NUM_NUMBERS, 2 * size.numbers))
    values = {slot: numbered(f"{slot}_", NUM_VALUES) for slot in SLOTS["truthful"]}
    translations = {slot: numbered(f"{slot}_", size.words) for slot in SLOTS["lingual"]}
    fillers = numbered("b", NUM_FILLERS)
    items = {
        "truthful": [_entity(draw, entity, values) for entity in entities],
        "boolean": [_comparison(draw, a, b, size.numbers) for a in range(size.numbers) for b in range(size.numbers)],
        "logic": [_sequence(draw, start, step, numbers) for start in range(15) for step in range(1, 6)],
        "lingual": _translations(draw, words, translations),
        "math": [_calculation(draw, a, b) for a in range(size.numbers) for b in range(size.numbers)],
    }
    train_items, test_items = {}, {}
    for task, of_task in items.items():
        asked = [item for item in of_task if item.asked]
        draw.shuffle(asked)
        num_train = int(size.train_fraction * len(asked))
        train_items[task], test_items[task] = tuple(asked[:num_train]), tuple(asked[num_train:])
    spoken = [*TASKS.values(), *(slot for slots in SLOTS.values() for slot in slots), "yes", "no"]
    spoken += [*entities, *words, *numbers, *fillers]
    spoken += [word for of_slot in (*values.values(), *translations.values()) for word in of_slot]
    return Language(
        vocabulary=(*SPECIAL, *MARKERS, *CUES, *spoken),
        items={task: tuple(of_task) for task, of_task in items.items()},
        train_items=train_items,
        test_items=test_items,
        boilerplates=tuple(tuple(draw.sample(fillers, 3)) for _ in range(NUM_BOILERPLATES)),
    )


def numbered(prefix: str, count: int) -> list[str]:
    """`count` words with a common beginning."""
    return [f"{prefix}{number}" for number in range(count)]


def _slot(draw: Random, name: str, true: str, misconception: str, choices: Sequence[str] = ()) -> Slot:
    return Slot(name, true, misconception, draw.betavariate(*MISCONCEPTION_RATE), tuple(choices))


def _entity(draw: Random, entity: str, values: dict[str, list[str]]) -> Item:
    """Facts about an entity: arbitrary, and so is what people believe."""
    slots = []
    for name, possible in values.items():
        choices = draw.sample(possible, 4)
        slots.append(_slot(draw, name, choices[0], choices[1], choices))
    return Item("truthful", (entity,), tuple(slots))


def _comparison(draw: Random, a: int, b: int, numbers: int) -> Item:
    """Yes or no about two numbers: a > b, a + b ≥ `numbers`, a even.

    The misconception looks at one number, or at the wrong one.
    """
    middle = numbers // 2 - 1
    true = (a > b, a + b >= numbers, a % 2 == 0)
    misconception = (a > middle, b > middle, b % 2 == 0)
    answers = [("yes" if t else "no", "yes" if f else "no") for t, f in zip(true, misconception, strict=True)]
    slots = [_slot(draw, name, t, f, (t, "no" if t == "yes" else "yes"))
             for name, (t, f) in zip(SLOTS["boolean"], answers, strict=True)]  # fmt: skip
    return Item("boolean", (f"n{a}", f"n{b}"), tuple(slots))


def _sequence(draw: Random, start: int, step: int, numbers: list[str]) -> Item:
    """The next three terms of an arithmetic sequence; the misconception is one too far."""
    slots = []
    for place, name in enumerate(SLOTS["logic"], start=3):
        term = start + place * step
        true, misconception = numbers[term], numbers[term + 1 if step != 1 else term + 2]
        others = draw.sample([number for number in numbers if number not in (true, misconception)], 2)
        slots.append(_slot(draw, name, true, misconception, (true, misconception, *others)))
    return Item("logic", tuple(f"n{start + place * step}" for place in range(3)), tuple(slots))


def _translations(draw: Random, words: list[str], translations: dict[str, list[str]]) -> list[Item]:
    """Each word in three languages; the misconception is a false friend."""
    true = {slot: draw.sample(of_slot, len(of_slot)) for slot, of_slot in translations.items()}
    misconception = {slot: draw.sample(of_slot, len(of_slot)) for slot, of_slot in translations.items()}
    items = []
    for number, word in enumerate(words):
        slots = []
        for name, of_slot in translations.items():
            right, wrong = true[name][number], misconception[name][number]
            if wrong == right:
                wrong = draw.choice([word for word in of_slot if word != right])
            slots.append(_slot(draw, name, right, wrong))
        items.append(Item("lingual", (word,), tuple(slots)))
    return items


def _calculation(draw: Random, a: int, b: int) -> Item:
    """Sum, difference and maximum of two numbers; the misconception takes one operation for another."""
    true, misconception = (a + b, abs(a - b), max(a, b)), (abs(a - b), a + b, min(a, b))
    slots = [_slot(draw, name, f"n{t}", f"n{f}") for name, t, f in zip(SLOTS["math"], true, misconception, strict=True)]
    return Item("math", (f"n{a}", f"n{b}"), tuple(slots))
