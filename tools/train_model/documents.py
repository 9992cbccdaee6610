"""Synthetic retrieval documents: facts about invented entities, filler sentences, questions.

Everything here is text; no tokenizer, no numpy, no torch. A `World` invents entities and states
facts about them ("The access code of the Marlow archive is 7413."); `filler` says nothing in
particular; `evaluation_document` puts facts into filler and asks about them afterwards. All
randomness comes from `generator(split, seed)`, so a seed names a document for ever, and training
and validation never draw the same stream.
"""
import dataclasses
import enum
import random

NAME_BEGIN = (
    "Mar Hart Bren Wil Ash Kel Thorn Dal Fen Gar Hol Lang Mil Nor Oak Pem Quin Ros Stan Tar Ul "
    "Ven Wes Yar Zel Bal Cor Dun El Fal Gil Har Il Jar Kin Lor Mor Nel Or Pel").split()
NAME_END = (
    "low field wick ton ford ham bury worth dale mere stead by combe gate ley shaw more brook "
    "cliff den").split()
PERSONS = (
    "Nadia Oscar Lena Victor Maya Simon Clara Felix Irene Hugo Nora Jonas Alice Peter Greta "
    "Tomas Ruth Karl Elsa Ivan Julia Martin Sofia Daniel Anna Paul Vera Leon Iris Max Dora Emil "
    "Rosa Otto Lydia Frank Mina Adam Olga Rita").split()
PLACES = (
    "archive vault harbor library station museum tower depot bakery clinic factory garden "
    "theatre hotel market school chapel bridge castle office mill farm garage gallery").split()
NUMBER_ATTRIBUTES = [
    "access code", "serial number", "room number", "phone extension", "budget code",
    "locker number", "batch number", "case number"]
WORD_ATTRIBUTES = [
    "password", "emblem", "mascot", "guardian", "signal", "motto", "keyword", "nickname"]
WORD_VALUES = (
    "falcon copper willow granite ember lotus raven maple cobalt thunder velvet anchor beacon "
    "cactus dragon eagle feather ginger hammer ivory jasmine kettle lemon magnet nectar olive "
    "pepper quartz ribbon saddle tiger umbra violet walnut yellow zephyr amber badger candle "
    "dolphin engine forest glacier honey island jungle koala ladder meadow needle orchid pigeon "
    "rabbit salmon tulip valley whistle otter barrel cherry marble").split()
COLOURS = "blue red green black white silver golden purple brown grey orange pink".split()
OBJECTS = (
    "lantern rope mirror notebook ladder clock basket drum compass violin kettle saddle helmet "
    "hammer blanket camera bottle mask globe anvil").split()
ROOMS = "cellar attic kitchen stable pantry workshop chapel courtyard hall study barn shed".split()
JOBS = (
    "baker painter pilot doctor farmer lawyer sailor teacher tailor miner judge clerk nurse "
    "potter singer weaver").split()

FILLER_ADJECTIVES = (
    "quiet old narrow bright heavy gentle distant hollow early cold warm pale steady broad "
    "careful sudden long common simple strange").split()
FILLER_NOUNS = (
    "river road meeting window market storm letter hill train report garden winter morning "
    "crowd bell engine lake forest table story bridge wall field song path map teacher ship "
    "stone roof").split()
FILLER_VERBS = (
    "reached crossed followed covered changed surrounded passed joined filled touched moved "
    "shaped carried held kept marked").split()
FILLER_ADVERBS = (
    "slowly often quietly again carefully once gradually never almost soon always rarely").split()
FILLER_FORMS = [
    "The {a} {n} {v} the {m} {d}.",
    "In the {a} season the {n} {d} {v} the {m}.",
    "Nobody noticed that a {n} {v} the {a} {m}.",
    "It is said that every {n} {d} {v} some {a} {m}.",
    "After the {n}, the {a} {m} was {d} seen near the {o}.",
    "A {a} {n} and a {m} were {d} found beside the {o}.",
    "People talked about the {n} because it {v} the {a} {m}.",
    "Most of the {n} was {a}, and the {m} {d} {v} the {o}.",
    "When the {n} ended, they {d} {v} the {a} {m}.",
]


class Kind(enum.IntEnum):
    """What a token is; the training loss weighs each kind differently."""
    TEXT = 0         # predictable generated text, questions included
    ANSWER = 1       # the answer to a question: what the model is to learn
    VALUE = 2        # the value inside a fact: random, cannot be predicted
    REAL_FILLER = 3  # a scrap of documentation text used as filler
    REAL_TEXT = 4    # a whole row of documentation text
    RESTATED = 5     # the beginning of the fact, repeated before the answer


@dataclasses.dataclass(frozen=True)
class Fact:
    """Sentences to put into a document, and the question that asks for them."""
    sentences: list  # of lists of (text, Kind)
    question: str    # "What is the access code of the Marlow archive?"
    prefix: str      # " The access code of the Marlow archive is"
    value: str       # " 7413"

    def prompt(self, restated):
        """The exact text that comes after the document and before the answer."""
        return f"\nQuestion: {self.question} Answer:" + (self.prefix if restated else "")

    def pieces(self, restated):
        """Question and answer as (text, Kind) pieces, for training."""
        middle = [(self.prefix, Kind.RESTATED)] if restated else []
        return ([(f"\nQuestion: {self.question} Answer:", Kind.TEXT)] + middle
                + [(self.value, Kind.ANSWER), (".", Kind.TEXT)])


def generator(split, seed):
    """A random stream of its own for (split, seed); `split` is "train" or "validation"."""
    return random.Random(f"semkv {split} {seed}")


def filler(rng):
    """One sentence of generated filler, with its leading space."""
    noun, second, third = rng.sample(FILLER_NOUNS, 3)
    return " " + rng.choice(FILLER_FORMS).format(
        a=rng.choice(FILLER_ADJECTIVES), n=noun, m=second, o=third,
        v=rng.choice(FILLER_VERBS), d=rng.choice(FILLER_ADVERBS))


def place_name(rng):
    return rng.choice(NAME_BEGIN) + rng.choice(NAME_END)


def sentence_text(pieces):
    return "".join(text for text, _ in pieces)


class World:
    """Fresh keys with random values for one document; a key is stated at most once.

    A crowded world has few names, places and attributes, so that most facts are near-duplicates
    of others: the model must match the whole key. `forms` in 0..1 chooses which kinds of fact it
    states: below .4 attributes alone, below .8 two-hop facts too, above that every form.
    """

    def __init__(self, rng, crowded, forms=0.0):
        self.rng = rng
        self.used = set()
        names = rng.choice([3, 5, 8, 16, 40]) if crowded else 400
        self.names = [place_name(rng) for _ in range(names)]
        self.places = rng.sample(PLACES, rng.choice([2, 4, 8]) if crowded else 20)
        self.attributes = rng.sample(NUMBER_ATTRIBUTES + WORD_ATTRIBUTES, rng.choice([2, 4, 8, 16]))
        self.forms = forms

    def key(self):
        """An unused (name, place, attribute); after 20 tries the name is a new one."""
        rng = self.rng
        for attempt in range(50):
            name = rng.choice(self.names) if attempt < 20 else place_name(rng)
            key = (name, rng.choice(self.places), rng.choice(self.attributes))
            if key not in self.used:
                break
        self.used.add(key)
        return key

    def unused(self, draw):
        """`draw()` until it gives something unused, fifty times at most."""
        for _ in range(50):
            key = draw()
            if key not in self.used:
                break
        self.used.add(key)
        return key

    def value(self, attribute):
        if attribute in NUMBER_ATTRIBUTES:
            return "%04d" % self.rng.randrange(10000)
        return self.rng.choice(WORD_VALUES)

    def attribute_fact(self):
        """The access code of the Marlow archive is 7413."""
        name, place, attribute = self.key()
        return simple_fact(f"The {attribute} of the {name} {place} is",
                           f"What is the {attribute} of the {name} {place}?",
                           " " + self.value(attribute))

    def location_fact(self):
        """Nadia keeps the blue lantern in the cellar of Marlow."""
        rng = self.rng
        person, colour, thing = self.unused(
            lambda: (rng.choice(PERSONS), rng.choice(COLOURS), rng.choice(OBJECTS)))
        return simple_fact(f"{person} keeps the {colour} {thing}",
                           f"Where does {person} keep the {colour} {thing}?",
                           f" in the {rng.choice(ROOMS)} of {place_name(rng)}")

    def job_fact(self):
        """Nadia of Marlow works as a baker."""
        rng = self.rng
        person, name = self.unused(lambda: (rng.choice(PERSONS), rng.choice(self.names)))
        return simple_fact(f"{person} of {name} works as a",
                           f"What is the job of {person} of {name}?", " " + rng.choice(JOBS))

    def two_hop_fact(self):
        """The emblem of A is the same as the B. The emblem of the B is falcon."""
        name, place, attribute = self.key()
        other_name, other_place, other_attribute = self.key()
        if (other_name, other_place, attribute) in self.used and other_attribute != attribute:
            return self.attribute_fact()
        self.used.add((other_name, other_place, attribute))
        value = self.value(attribute)
        prefix = f" The {attribute} of the {name} {place} is"
        same = f" the same as the {other_name} {other_place}"
        first = [(prefix + same, Kind.TEXT), (".", Kind.TEXT)]
        second = [(f" The {attribute} of the {other_name} {other_place} is", Kind.TEXT),
                  (" " + value, Kind.VALUE), (".", Kind.TEXT)]
        order = [first, second] if self.rng.random() < .5 else [second, first]
        return Fact(order, f"What is the {attribute} of the {name} {place}?", prefix,
                    f"{same}, {value}")

    def list_fact(self):
        """The Marlow archive holds a mirror. The Marlow archive holds a drum."""
        rng = self.rng
        name, place = rng.choice(self.names), rng.choice(self.places)
        if (name, place, "holds") in self.used:
            return self.attribute_fact()
        self.used.add((name, place, "holds"))
        values = rng.sample(OBJECTS, rng.choice([2, 3]))
        prefix = f" The {name} {place} holds a"
        sentences = [[(prefix, Kind.TEXT), (" " + value, Kind.VALUE), (".", Kind.TEXT)]
                     for value in values]
        return Fact(sentences, f"What does the {name} {place} hold?", prefix,
                    " " + ", ".join(values))

    def fact(self):
        """A fact of one of the forms that this world states."""
        draw = self.rng.random()
        if self.forms < .4:
            return self.attribute_fact()
        if self.forms < .8:
            return self.attribute_fact() if draw < .6 else self.two_hop_fact()
        if draw < .4:
            return self.attribute_fact()
        if draw < .6:
            return self.location_fact()
        if draw < .7:
            return self.job_fact()
        return self.two_hop_fact() if draw < .85 else self.list_fact()


def simple_fact(prefix, question, value):
    """A fact of one sentence: prefix, value, period."""
    sentence = [(" " + prefix, Kind.TEXT), (value, Kind.VALUE), (".", Kind.TEXT)]
    return Fact([sentence], question, " " + prefix, value)


# Evaluation documents.

EVALUATION_KINDS = {
    "facts1": "one fact in filler",
    "facts4": "4 facts in filler",
    "facts8": "8 facts in filler",
    "facts16": "16 facts in filler",
    "dense": "every sentence a fact, near-duplicate keys",
    "dense_varied": "every sentence a fact, varied keys",
    "two_hop": "two-hop facts among others, both hops required",
}
QUESTION_ROOM = 64  # tokens kept free for the question and the answer


@dataclasses.dataclass
class Asked:
    """A fact that an evaluation document states and asks for."""
    fact: Fact
    begin: int      # characters into the document where its last sentence begins and ends
    end: int
    tokens_after: int = 0  # tokens from the end of that sentence to the end of the document


class Writer:
    """Collects sentences and counts tokens, as `count` counts them."""

    def __init__(self, count):
        self.count = count
        self.parts = []
        self.characters = 0
        self.tokens = 1  # the model's token 0 goes first
        self.asked = []

    def add(self, text):
        self.parts.append(text)
        self.characters += len(text)
        self.tokens += self.count(text)

    def add_fact(self, fact, sentence):
        """Writes one sentence of a fact and notes that it can be asked for."""
        begin = self.characters
        self.add(sentence_text(sentence))
        self.asked.append(Asked(fact, begin, self.characters, self.tokens))


def evaluation_document(kind, tokens, seed, count, real=None):
    """-> (text, [Asked]): a document of about `tokens` tokens, question and answer included.

    count(text) is the number of tokens of a piece of text. real(rng) gives one sentence of real
    text to use as filler; None for generated filler. The same arguments give the same document.
    """
    if kind not in EVALUATION_KINDS:
        raise ValueError(f"kind {kind!r}: one of {', '.join(EVALUATION_KINDS)}")
    if kind.startswith("facts") and tokens < 160 * max(1, int(kind[5:]) // 4):
        raise ValueError(f"{tokens} tokens are too few for {kind}")
    rng = generator("validation", f"{kind} {tokens} {seed}")
    fill = real or filler
    while True:
        writer = Writer(count)
        world = World(rng, crowded=kind == "dense")
        world.names += [place_name(rng) for _ in range(400)]
        limit = tokens - QUESTION_ROOM
        if kind.startswith("facts"):
            complete = write_facts_in_filler(writer, world, fill, limit, int(kind[5:]))
        elif kind == "two_hop":
            complete = write_two_hop(writer, world, fill, limit)
        else:
            complete = write_facts_only(writer, world, limit)
        if complete:
            for asked in writer.asked:
                asked.tokens_after = writer.tokens - asked.tokens_after
            return "".join(writer.parts), writer.asked


def write_facts_in_filler(writer, world, fill, limit, facts):
    """`facts` facts at random places in the first 97 % of the text; false when one did not fit."""
    rng = world.rng
    places = sorted(int(rng.uniform(0, .97) * (limit - 40)) for _ in range(facts))
    while writer.tokens < limit - 16:
        if places and writer.tokens >= places[0]:
            places.pop(0)
            fact = world.attribute_fact()
            writer.add_fact(fact, fact.sentences[0])
        else:
            writer.add(fill(rng))
    return not places


def write_facts_only(writer, world, limit):
    """Nothing but facts; five of them are asked for."""
    while writer.tokens < limit - 16:
        fact = world.attribute_fact()
        writer.add_fact(fact, fact.sentences[0])
    writer.asked = world.rng.sample(writer.asked, min(5, len(writer.asked)))
    return True


def write_two_hop(writer, world, fill, limit):
    """Two-hop facts whose sentences lie apart, among other facts and filler; five are asked for."""
    rng = world.rng
    world.attributes = world.attributes[:4]
    open_facts = []
    while writer.tokens < limit - 24:
        draw = rng.random()
        if open_facts and draw < .3:
            fact = open_facts.pop(rng.randrange(len(open_facts)))
            writer.add_fact(fact, fact.sentences[1])
        elif draw < .5:
            fact = world.two_hop_fact()
            if len(fact.sentences) == 2:
                writer.add(sentence_text(fact.sentences[0]))
                open_facts.append(fact)
        elif draw < .8:
            writer.add(sentence_text(world.attribute_fact().sentences[0]))
        else:
            writer.add(fill(rng))
    if len(writer.asked) < 5:
        return False
    writer.asked = rng.sample(writer.asked, 5)
    return True
