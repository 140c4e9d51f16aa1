"""Makes the dialogues that the demo model is trained and examined on.

Everything is drawn from a seeded random.Random, so a seed fixes the data. A dialogue is a system text
and a list of turns; only the last turn keeps its thinking, because the chat template drops the thinking
of earlier answers. Arithmetic pairs and names whose hash says so never occur in training.

    generate.py --seed 7 --count 20      print dialogues
    generate.py --questions FILE         write the examination (questions.jsonl)
"""

import argparse
import json
import random
import zlib
from dataclasses import dataclass, field

import facts


@dataclass
class Turn:
    user: str
    answer: str
    think: str = ""
    expected: str = ""  # what a right answer must contain; for kind "number" its last number
    kind: str = "text"  # text | number | exact
    topic: str = ""
    direct_loss: bool = True  # whether the answer without thinking is worth learning


@dataclass
class Dialogue:
    system: str = ""
    turns: list = field(default_factory=list)


def held_out(*key):
    """One combination in ten is kept out of training."""
    return zlib.crc32("|".join(map(str, key)).encode()) % 10 == 0


# ---------------------------------------------------------------- facts


def article(noun):
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def build_facts():
    """All facts as (questions, answer, expected, topic), grouped by topic."""
    table = {}

    def add(topic, questions, answer, expected):
        table.setdefault(topic, []).append((questions, answer, expected, topic))

    for country, capital, continent, language in facts.COUNTRIES:
        add("capital", [f"What is the capital of {country}?", f"Which city is the capital of {country}?",
                        f"Name the capital of {country}.", f"Tell me the capital of {country}.",
                        f"Capital of {country}?"],
            f"The capital of {country} is {capital}.", capital)
        add("capital-of", [f"{capital} is the capital of which country?", f"Of which country is {capital} the capital?",
                           f"Which country has the capital {capital}?"],
            f"{capital} is the capital of {country}.", country)
        add("continent", [f"On which continent is {country}?", f"Which continent is {country} in?",
                          f"What continent does {country} belong to?"],
            f"{country} is in {continent}.", continent)
        add("language", [f"What language do people speak in {country}?", f"Which language is spoken in {country}?",
                         f"What is the language of {country}?"],
            f"People in {country} speak {language}.", language)
    for animal, sound, young, legs in facts.ANIMALS:
        add("sound", [f"What sound does a {animal} make?".replace("a e", "an e").replace("a o", "an o"),
                      f"What does {article(animal)} do to be heard?", f"How does {article(animal)} sound?"],
            f"{article(animal).capitalize()} {sound}.", sound)
        add("young", [f"What is a young {animal} called?", f"What do you call a baby {animal}?",
                      f"What is the name for a young {animal}?"],
            f"A young {animal} is called {article(young)}.", young)
        add("legs", [f"How many legs does {article(animal)} have?", f"How many legs has {article(animal)}?"],
            f"{article(animal).capitalize()} has {legs} legs.", legs)
    for thing, colour in facts.COLOURS:
        name = f"the {thing}" if thing in ("sky", "sea", "night") else thing
        add("colour", [f"What colour is {name}?", f"Which colour does {name} have?", f"Tell me the colour of {name}.",
                       f"What is the colour of {name}?"],
            f"{name[0].upper() + name[1:]} is {colour}.", colour)
    for one, other in facts.OPPOSITES:
        for a, b in ((one, other), (other, one)):
            add("opposite", [f"What is the opposite of {a}?", f"Tell me the opposite of {a}.", f"Opposite of {a}?",
                             f"Which word is the opposite of {a}?", f"What is the contrary of {a}?"],
                f"The opposite of {a} is {b}.", b)
    for one, many in facts.PLURALS:
        add("plural", [f"What is the plural of {one}?", f"Tell me the plural of {one}.", f"Plural of {one}?",
                       f"One {one}, two what?"],
            f"The plural of {one} is {many}.", many)
    for verb, past in facts.PAST:
        add("past", [f"What is the past tense of {verb}?", f"Tell me the past tense of {verb}.",
                     f"Past tense of {verb}?"],
            f"The past tense of {verb} is {past}.", past)
    for english, *others in facts.TRANSLATIONS:
        for language, word in zip(("French", "German", "Spanish"), others):
            add("translate", [f"What is {english} in {language}?", f"Translate {english} into {language}.",
                              f"How do you say {english} in {language}?", f"What is the {language} word for {english}?"],
                f"In {language}, {english} is {word}.", word)
    for work, author in facts.AUTHORS:
        add("author", [f"Who wrote {work}?", f"Who is the author of {work}?", f"Which author wrote {work}?",
                       f"By whom is {work}?"],
            f"{author} wrote {work}.", author)
    for element, symbol in facts.SYMBOLS:
        add("symbol", [f"What is the chemical symbol of {element}?", f"What is the symbol for {element}?",
                       f"Which symbol does {element} have?"],
            f"The chemical symbol of {element} is {symbol}.", symbol)
    for thing, kind in facts.KINDS:
        name = thing if thing[0].isupper() or kind in ("sport", "metal") else article(thing)
        add("kind", [f"What is {name}?", f"What kind of thing is {name}?"],
            f"{name[0].upper() + name[1:]} is {article(kind)}.", kind)
    for i, day in enumerate(facts.DAYS):
        after, before = facts.DAYS[(i + 1) % 7], facts.DAYS[i - 1]
        add("day", [f"Which day comes after {day}?", f"What day follows {day}?", f"What is the day after {day}?",
                    f"If today is {day}, what is tomorrow?"], f"{after} comes after {day}.", after)
        add("day", [f"Which day comes before {day}?", f"What is the day before {day}?",
                    f"If today is {day}, what was yesterday?"], f"{before} comes before {day}.", before)
        add("day", [f"What is the {facts.ORDINALS[i]} day of the week?", f"Which day is the {facts.ORDINALS[i]} of the week?"],
            f"The {facts.ORDINALS[i]} day of the week is {day}.", day)
    for i, month in enumerate(facts.MONTHS):
        after, before = facts.MONTHS[(i + 1) % 12], facts.MONTHS[i - 1]
        add("month", [f"Which month comes after {month}?", f"What month follows {month}?",
                      f"What is the month after {month}?"], f"{after} comes after {month}.", after)
        add("month", [f"Which month comes before {month}?", f"What is the month before {month}?"],
            f"{before} comes before {month}.", before)
        add("month", [f"What is the {facts.ORDINALS[i]} month of the year?", f"Which month is the {facts.ORDINALS[i]} of the year?"],
            f"The {facts.ORDINALS[i]} month of the year is {month}.", month)
        add("month", [f"How many days does {month} have?", f"How many days are in {month}?", f"How long is {month}?"],
            f"{month} has {facts.MONTH_LENGTHS[i]} days.", str(facts.MONTH_LENGTHS[i]))
    for number, word in enumerate(facts.NUMBER_WORDS):
        add("number-word", [f"Write {number} as a word.", f"How do you write {number} in words?",
                            f"What is {number} in words?"], f"{number} in words is {word}.", word)
        add("number-word", [f"Write {word} as a number.", f"Which number is {word}?", f"What is {word} in digits?"],
            f"{word.capitalize()} is {number}.", str(number))
    for i, planet in enumerate(facts.PLANETS):
        add("planet", [f"What is the {facts.ORDINALS[i]} planet from the sun?", f"Which planet is {facts.ORDINALS[i]} from the sun?"],
            f"The {facts.ORDINALS[i]} planet from the sun is {planet}.", planet)
    for word in facts.SPELLING:
        spelled = "-".join(word)
        add("spell", [f"Spell the word {word}.", f"How do you spell {word}?", f"Spell {word}.",
                      f"Please spell {word} for me."], spelled, spelled)
        add("letters", [f"How many letters does the word {word} have?", f"How many letters are in {word}?",
                        f"Count the letters of {word}."], f"{spelled}: {len(word)} letters.", str(len(word)))
        add("first-letter", [f"What is the first letter of {word}?", f"With which letter does {word} begin?"],
            f"{word.capitalize()} begins with {word[0]}.", word[0])
    for topic, rows in (("general", facts.GENERAL), ("project", facts.PROJECT), ("small-talk", facts.SMALL_TALK)):
        for questions, answer, expected in rows:
            add(topic, questions, answer, expected)
    add("unknown", facts.UNKNOWN, "I do not know that.", "do not know")
    return table


FACTS = build_facts()
# Weight of a topic: how many facts it has, damped so that large tables do not drown small ones.
FACT_TOPICS = list(FACTS)
FACT_WEIGHTS = [len(FACTS[t]) ** 0.8 * (1.5 if t in ("project", "general", "small-talk") else 1.0) for t in FACT_TOPICS]
FACT_WEIGHTS[FACT_TOPICS.index("unknown")] = 8.0
OPENERS = ["Please tell me: ", "Hey, ", "I have a question. ", "Tell me, ", "So, ", "Now, ", "And ", "Okay. ", "Quick question: "]


def vary(rng, text):
    """The same question as people type it: lower case, no question mark, an opener."""
    r = rng.random()
    if r < 0.60:
        return text
    if r < 0.75:
        return text[0].lower() + text[1:]
    if r < 0.83:
        return text.rstrip("?.!") or text
    if r < 0.91:
        return (text[0].lower() + text[1:]).rstrip("?.!") or text
    opener = rng.choice(OPENERS)
    keep = opener.endswith((". ", ": ")) or text.split()[0] in ("I",) or text.split()[0].istitle() and not text.startswith(
        ("What", "Which", "How", "Who", "Where", "When", "Name", "Tell", "On", "In", "Of", "At", "Why", "Write", "Spell",
         "Count", "Do", "Translate", "If", "Opposite", "Plural", "Past", "Capital", "By", "With", "Please"))
    return opener + (text if keep else text[0].lower() + text[1:])


def fact_turn(rng, topic=None):
    topic = topic or rng.choices(FACT_TOPICS, FACT_WEIGHTS)[0]
    questions, answer, expected, topic = rng.choice(FACTS[topic])
    kind = "exact" if topic == "spell" else "text"
    return Turn(vary(rng, rng.choice(questions)), answer, expected=expected, kind=kind, topic=topic)


# ---------------------------------------------------------------- arithmetic

PLACES = ["ones", "tens", "hundreds", "thousands"]


def digits(n, width):
    return [n // 10**i % 10 for i in range(width)]


def think_add(a, b):
    width = max(len(str(a)), len(str(b)))
    lines, carry = [f"{a} + {b}"], 0
    for place, (x, y) in enumerate(zip(digits(a, width), digits(b, width))):
        total = x + y + carry
        line = f"{PLACES[place]}: {x} + {y}" + (" + 1" if carry else "") + f" = {total}"
        carry = total // 10
        lines.append(line + (f", write {total % 10}, carry 1" if carry else ""))
    return lines + [f"result {a + b}"]


def think_subtract(a, b):
    if a < b:
        return [f"{a} - {b}", f"{a} is less than {b}, so minus", *think_subtract(b, a)[:-1], f"result -{b - a}"]
    width = len(str(a))
    lines, borrow = [f"{a} - {b}"], 0
    for place, (x, y) in enumerate(zip(digits(a, width), digits(b, width))):
        left = x - borrow
        line = f"{PLACES[place]}: {x} - {y}" + (" - 1" if borrow else "")
        if left < y:
            line += f", borrow, {x + 10} - {y}" + (" - 1" if borrow else "")
        lines.append(line + f" = {(left - y) % 10}")
        borrow = int(left < y)
    return lines + [f"result {a - b}"]


def think_multiply(a, b):
    if a < 10 and b < 10:
        return [f"{a} * {b} = {a * b}", f"result {a * b}"]
    if a < b:
        return [f"{a} * {b} = {b} * {a}", *think_multiply(b, a)]
    lines, carry = [f"{a} * {b}"], 0
    for place, x in enumerate(digits(a, len(str(a)))):
        total = x * b + carry
        line = f"{PLACES[place]}: {x} * {b} = {x * b}" + (f", {x * b} + {carry} = {total}" if carry else "")
        last = place == len(str(a)) - 1
        carry = total // 10
        lines.append(line + (f", write {total % 10}, carry {carry}" if carry and not last else ""))
    return lines + [f"result {a * b}"]


OPERATIONS = {
    "+": (think_add, lambda a, b: a + b, ["plus", "+"]),
    "-": (think_subtract, lambda a, b: a - b, ["minus", "-"]),
    "*": (think_multiply, lambda a, b: a * b, ["times", "*", "x"]),
}


def draw_operands(rng, op):
    if op == "*":
        if rng.random() < 0.55:
            return rng.randint(0, 10), rng.randint(0, 10)
        pair = (rng.randint(10, 99), rng.randint(2, 9))
        return pair if rng.random() < 0.75 else pair[::-1]
    r = rng.random()
    if r < 0.25:
        a, b = rng.randint(0, 12), rng.randint(0, 12)
    elif r < 0.90:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
    else:
        a, b = rng.randint(100, 999), rng.randint(1, 999)
    if op == "-" and a < b and rng.random() < 0.75:
        a, b = b, a
    return a, b


def is_held_out_pair(op, a, b):
    return max(a, b) >= 13 and held_out(op, a, b)


def draw_pair(rng, op, exam):
    """Operands from the training side of the split, or with exam from the other one (two-digit work)."""
    while True:
        a, b = draw_operands(rng, op)
        if is_held_out_pair(op, a, b) == exam and not (exam and max(a, b) > 99):
            return a, b


def sum_turn(rng, exam=False):
    op = rng.choices("+-*", (4, 4, 2.5))[0]
    a, b = draw_pair(rng, op, exam)
    think, compute, words = OPERATIONS[op]
    result = compute(a, b)
    story = rng.random() < 0.2 and a > 1 and b > 1 and result >= 0
    if story:
        who, thing = draw_name(rng), rng.choice(facts.THINGS)
        if op == "+":
            question = rng.choice([f"I have {a} {thing} and get {b} more. How many {thing} do I have?",
                                   f"{who} has {a} {thing} and finds {b} more. How many {thing} is that?",
                                   f"There are {a} {thing} here and {b} {thing} there. How many are there in total?"])
        elif op == "-":
            question = rng.choice([f"I have {a} {thing} and give away {b}. How many {thing} are left?",
                                   f"{who} has {a} {thing} and loses {b}. How many {thing} are left?",
                                   f"There are {a} {thing}. I take {b} of them. How many are left?"])
        else:
            question = rng.choice([f"There are {a} boxes with {b} {thing} each. How many {thing} is that?",
                                   f"{who} buys {a} bags of {b} {thing}. How many {thing} is that?"])
        answer = f"{result} {thing}."
    else:
        word = rng.choice(words)
        space = "" if word == "x" or word in "+-*" and rng.random() < 0.3 else " "
        term = f"{a}{space}{word}{space}{b}" if word != "x" or rng.random() < 0.5 else f"{a} x {b}"
        question = rng.choice([f"What is {term}?", f"What is {term}?", f"Compute {term}.", f"Calculate {term}.",
                               f"How much is {term}?", f"{term} = ?", f"{term}", f"what is {term}",
                               f"Please calculate {term}.", f"Can you tell me what {term} is?"])
        answer = f"{a} {op} {b} = {result}"
    return Turn(question, answer, think="\n".join(think(a, b)), expected=str(result), kind="number",
                topic={"+": "add", "-": "subtract", "*": "multiply"}[op], direct_loss=False)


# ---------------------------------------------------------------- counting and comparing


def number_turn(rng):
    r = rng.random()
    if r < 0.3:
        start = rng.randint(0, 60)
        end = start + rng.randint(2, 9)
        if rng.random() < 0.3:
            start, end = end, start
        step = 1 if end > start else -1
        answer = ", ".join(str(n) for n in range(start, end + step, step))
        way = "Count" if step > 0 else rng.choice(["Count", "Count down", "Count backwards"])
        return Turn(vary(rng, f"{way} from {start} to {end}."), answer, expected=answer, kind="exact", topic="count")
    n = rng.randint(0, 99)
    if r < 0.5:
        return Turn(vary(rng, rng.choice([f"Which number comes after {n}?", f"What comes after {n}?",
                                          f"What number follows {n}?"])),
                    f"{n + 1} comes after {n}.", expected=str(n + 1), topic="successor")
    if r < 0.65:
        return Turn(vary(rng, rng.choice([f"Which number comes before {n + 1}?", f"What comes before {n + 1}?"])),
                    f"{n} comes before {n + 1}.", expected=str(n), topic="predecessor")
    if r < 0.82:
        parity = "odd" if n % 2 else "even"
        return Turn(vary(rng, rng.choice([f"Is {n} even or odd?", f"Is {n} odd or even?", f"Is the number {n} even or odd?"])),
                    f"{n} is {parity}.", expected=parity, topic="parity")
    m = rng.randint(0, 99)
    if n == m:
        m = n + 1
    more = rng.random() < 0.6
    word = rng.choice(["larger", "bigger", "greater"]) if more else "smaller"
    best = max(n, m) if more else min(n, m)
    return Turn(vary(rng, rng.choice([f"Which is {word}, {n} or {m}?", f"What is {word}: {n} or {m}?",
                                      f"Which number is {word}, {n} or {m}?"])),
                f"{best} is {word}.", expected=str(best), topic="compare")


# ---------------------------------------------------------------- memory

CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"


def synthetic_name(rng):
    if rng.random() < 0.25:
        name = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 7)))
    else:
        name = "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) + (rng.choice("nrlsmtk") if rng.random() < 0.25 else "")
                       for _ in range(rng.randint(2, 3)))
    return name.capitalize()


def draw_name(rng, exam=False, pool=facts.FIRST_NAMES):
    """A name from the training side of the split, or with exam one that training never sees."""
    while True:
        name = rng.choice(pool) if rng.random() < 0.4 else synthetic_name(rng)
        if held_out("name", name) == exam:
            return name


def draw_number(rng, exam=False):
    while True:
        number = str(rng.randint(10, 99999))
        if held_out("number", number) == exam:
            return number


def slots(rng, exam):
    """What a user can tell: slot -> (ways to say it, answers to it, questions, recall). One value each."""
    name, city = draw_name(rng, exam), rng.choice(facts.COUNTRIES)[1]
    if exam or rng.random() < 0.4:
        city = draw_name(rng, exam)
    pet, pet_name = rng.choice(facts.PETS), draw_name(rng, exam, facts.PET_NAMES)
    relative = rng.choice(["brother", "sister", "mother", "father", "friend", "teacher", "son", "daughter", "boss"])
    relative_name, number, age = draw_name(rng, exam), draw_number(rng, exam), str(rng.randint(6, 95))
    colour, food = rng.choice(facts.COLOUR_NAMES), rng.choice(facts.FOODS)
    hobby, job, word = rng.choice(facts.HOBBIES), rng.choice(facts.JOBS), synthetic_name(rng).lower()
    if held_out("name", word.capitalize()) != exam:
        word = draw_name(rng, exam).lower()
    return {
        "name": (name, [f"My name is {name}.", f"I am {name}.", f"Hello, I am {name}.", f"Hi, my name is {name}.",
                        f"Call me {name}.", f"You can call me {name}.", f"I'm {name}.", f"Hello! My name is {name}."],
                 [f"Nice to meet you, {name}!"],
                 ["What is my name?", "Who am I?", "Do you remember my name?", "What am I called?",
                  "Can you tell me my name?", "Do you know my name?"], f"Your name is {name}."),
        "city": (city, [f"I live in {city}.", f"My home is in {city}.", f"I come from {city}."],
                 [f"{city} sounds like a nice place."],
                 ["Where do I live?", "In which city do I live?", "Where is my home?", "Which city am I from?"],
                 f"You live in {city}."),
        "pet": (pet_name, [f"My {pet} is called {pet_name}.", f"I have a {pet} called {pet_name}.",
                           f"I have a {pet} named {pet_name}.", f"The name of my {pet} is {pet_name}."],
                [f"{pet_name} is a nice name for a {pet}."],
                [f"What is my {pet} called?", f"What is the name of my {pet}?", f"Do you remember the name of my {pet}?"],
                f"Your {pet} is called {pet_name}."),
        "relative": (relative_name, [f"My {relative} is called {relative_name}.", f"The name of my {relative} is {relative_name}.",
                                     f"My {relative}'s name is {relative_name}."],
                     [f"I will remember that your {relative} is called {relative_name}."],
                     [f"What is my {relative} called?", f"What is the name of my {relative}?", f"What is my {relative}'s name?"],
                     f"Your {relative} is called {relative_name}."),
        "number": (number, [f"My lucky number is {number}.", f"Remember the number {number}.",
                            f"Please remember the number {number}.", f"My number is {number}."],
                   [f"I will remember the number {number}."],
                   ["What is my number?", "Which number did I tell you?", "What was the number?", "What is my lucky number?",
                    "Which number should you remember?"], f"Your number is {number}."),
        "word": (word, [f"The secret word is {word}.", f"Remember the word {word}.", f"My password is {word}."],
                 [f"I will remember the word {word}."],
                 ["What is the secret word?", "Which word did I tell you?", "What was the word?", "What is my password?"],
                 f"The word is {word}."),
        "age": (age, [f"I am {age} years old.", f"My age is {age}."], [f"So you are {age} years old."],
                ["How old am I?", "What is my age?", "Do you remember how old I am?"], f"You are {age} years old."),
        "colour": (colour, [f"My favourite colour is {colour}.", f"I like the colour {colour} best.", f"I love the colour {colour}."],
                   [f"{colour.capitalize()} is a beautiful colour."],
                   ["What is my favourite colour?", "Which colour do I like best?", "Which colour do I like?"],
                   f"Your favourite colour is {colour}."),
        "food": (food, [f"My favourite food is {food}.", f"I like to eat {food}.", f"I love {food}."],
                 [f"{food.capitalize()} can be very tasty."],
                 ["What is my favourite food?", "What do I like to eat?", "Which food do I like?"],
                 f"Your favourite food is {food}."),
        "hobby": (hobby, [f"My hobby is {hobby}.", f"I enjoy {hobby}.", f"In my free time I like {hobby}."],
                  [f"{hobby.capitalize()} is a good hobby."],
                  ["What is my hobby?", "What do I enjoy?", "What do I do in my free time?"], f"Your hobby is {hobby}."),
        "job": (job, [f"I work as a {job}.".replace("a e", "an e"), f"I am a {job}.".replace("a e", "an e"),
                      f"My job is {job}."], [f"Being {article(job)} is an important job."],
                ["What is my job?", "What do I work as?", "Which job do I have?"], f"You work as {article(job)}."),
    }


SLOT_NAMES = ["name", "city", "pet", "relative", "number", "word", "age", "colour", "food", "hobby", "job"]
SLOT_WEIGHTS = [5, 1.5, 2, 1.5, 2.5, 1.5, 1, 2, 1, 1, 1]
NAME_SLOTS = ["name", "city", "pet", "relative", "number", "word"]  # whose values the split can keep out
NOT_TOLD = {
    "name": ("You have not told me your name.", "not told"), "city": ("You have not told me where you live.", "not told"),
    "number": ("You have not told me a number.", "not told"), "word": ("You have not told me a word.", "not told"),
    "age": ("You have not told me your age.", "not told"),
    "colour": ("You have not told me your favourite colour.", "not told"),
    "food": ("You have not told me your favourite food.", "not told"),
    "hobby": ("You have not told me your hobby.", "not told"), "job": ("You have not told me your job.", "not told"),
}


def filler_turn(rng):
    r = rng.random()
    if r < 0.68:
        return fact_turn(rng)
    if r < 0.76:
        remark, answer = rng.choice(facts.FILLER_REMARKS)
        return Turn(remark, answer, expected=answer, topic="remark")
    return sum_turn(rng) if r < 0.92 else number_turn(rng)


def memory_dialogue(rng, exam=False):
    """One to three things told, up to three other turns between, then one of them asked for."""
    values = slots(rng, exam)
    dialogue = Dialogue()
    asked = rng.choices(SLOT_NAMES, SLOT_WEIGHTS)[0]
    if exam:
        asked = rng.choice(NAME_SLOTS)
    told = [asked]
    for _ in range(rng.choices((0, 1, 2), (5, 3, 2))[0]):
        other = rng.choices(SLOT_NAMES, SLOT_WEIGHTS)[0]
        if other not in told:
            told.append(other)
    rng.shuffle(told)
    missing = not exam and asked in NOT_TOLD and rng.random() < 0.15
    if missing:
        told.remove(asked)
    by_system = not exam and not missing and asked == "name" and rng.random() < 0.12
    if by_system:
        told.remove("name")
        dialogue.system = f"The name of the user is {values['name'][0]}."
    if len(told) == 2 and rng.random() < 0.35:  # two things in one message; the answer takes up the second
        first, second = told
        said = rng.choice(values[first][1]) + " " + rng.choice(values[second][1])
        dialogue.turns.append(Turn(said, values[second][2][0], expected=values[second][0], topic="told"))
    else:
        for slot in told:
            dialogue.turns.append(Turn(rng.choice(values[slot][1]), rng.choice(values[slot][2]),
                                       expected=values[slot][0], topic="told"))
            if rng.random() < 0.2:
                dialogue.turns.append(filler_turn(rng))
    for _ in range(rng.choices((0, 1, 2, 3), (25, 40, 25, 10))[0]):
        dialogue.turns.append(filler_turn(rng))
    value, _, _, questions, recall = values[asked]
    if missing:
        recall, value = NOT_TOLD[asked]
    dialogue.turns.append(Turn(vary(rng, rng.choice(questions)), recall, expected=value,
                               topic="not-told" if missing else "recall"))
    return dialogue


def identity_dialogue(rng):
    """Who the assistant is: the demo model, unless the system text names it."""
    questions = ["What is your name?", "Who are you?", "What are you called?", "What should I call you?"]
    if rng.random() < 0.5:
        name = draw_name(rng)
        system = rng.choice([f"Your name is {name}.", f"You are {name}, a helpful assistant.", f"You are called {name}."])
        turn = Turn(vary(rng, rng.choice(questions)), f"My name is {name}.", expected=name, topic="identity")
        return Dialogue(system, [turn])
    return Dialogue("", [Turn(vary(rng, rng.choice(questions)), "I am the demo model of Shoal.", expected="Shoal",
                              topic="identity")])


# ---------------------------------------------------------------- dialogues

SYSTEMS = ["You are a helpful assistant.", "You are a helpful assistant.", "Answer briefly.", "You are a friendly assistant.",
           "Be polite and brief.", "Answer the questions of the user.", "You are an assistant that runs on Shoal."]


def dialogue(rng):
    r = rng.random()
    if r < 0.34:
        result = Dialogue("", [fact_turn(rng)])
    elif r < 0.62:
        result = Dialogue("", [sum_turn(rng)])
    elif r < 0.66:
        result = Dialogue("", [number_turn(rng)])
    elif r < 0.93:
        result = memory_dialogue(rng)
    elif r < 0.955:
        result = identity_dialogue(rng)
    else:
        result = Dialogue("", [filler_turn(rng) for _ in range(rng.randint(2, 4))])
    if not result.system and rng.random() < 0.2:
        result.system = rng.choice(SYSTEMS)
    return result


def segments(rng, dialogue):
    """The dialogue as (text, is_learned) pieces, as the chat template lays it out."""
    pieces = [("<｜begin▁of▁sentence｜>" + dialogue.system, False)]
    for i, turn in enumerate(dialogue.turns):
        last = i == len(dialogue.turns) - 1
        pieces.append((f"<｜User｜>{turn.user}<｜Assistant｜>", False))
        answer, learned = turn.answer, True
        if turn.think and last:
            answer = f"<think>\n{turn.think}\n</think>\n\n{answer}"
        elif turn.think:
            # What follows </think> in an earlier answer; servers may or may not keep its line breaks.
            answer, learned = rng.choice(["\n\n", ""]) + answer, turn.direct_loss
        pieces.append((answer + "<｜end▁of▁sentence｜>", learned))
    return pieces


def messages(dialogue):
    """The dialogue as chat messages up to the last question."""
    result = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
    for turn in dialogue.turns:
        result.append({"role": "user", "content": turn.user})
        result.append({"role": "assistant", "content": turn.answer})
    return result[:-1]


def question(dialogue, split, number):
    last = dialogue.turns[-1]
    return {"id": f"{split}-{number:03d}", "split": split, "topic": last.topic, "messages": messages(dialogue),
            "check": last.kind, "expected": last.expected}


def questions(seed=20261124):
    """300 questions of the training distribution and 100 held-out combinations, none asked twice."""
    rng, result, seen = random.Random(seed), [], set()

    def draw(split, count, make):
        made = 0
        while made < count:
            item = make()
            key = json.dumps(messages(item))
            if key in seen:
                continue
            seen.add(key)
            result.append(question(item, split, len(result)))
            made += 1

    draw("trained", 300, lambda: dialogue(rng))
    draw("held-out", 50, lambda: Dialogue("", [sum_turn(rng, exam=True)]))
    draw("held-out", 50, lambda: memory_dialogue(rng, exam=True))
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--questions", help="write the examination to this file")
    args = parser.parse_args()
    if args.questions:
        with open(args.questions, "w", encoding="utf-8") as out:
            for item in questions():
                out.write(json.dumps(item, ensure_ascii=False) + "\n")
        return
    rng = random.Random(args.seed)
    for _ in range(args.count):
        print("".join(text for text, _ in segments(rng, dialogue(rng))), end="\n\n")


if __name__ == "__main__":
    main()
