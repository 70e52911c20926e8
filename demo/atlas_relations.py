"""Closed relations: facts about the world, its words and its numbers."""

from itertools import pairwise

from demo import facts as world
from demo import words
from demo.relations import Fact, Relation, closed, facts_of

CAPITAL = {country: capital for country, capital, *_ in world.COUNTRIES}
COUNTRY = {capital: country for country, capital in CAPITAL.items()}


def column(table: tuple[tuple[str, ...], ...], source: int, target: int) -> tuple[Fact, ...]:
    """Facts that lead from one column of a table to another."""
    return facts_of((row[source], row[target]) for row in table)


def after(things: tuple[str, ...], *, cyclic: bool = False) -> tuple[Fact, ...]:
    """Each thing's successor; a cyclic sequence begins again after its end."""
    return facts_of(pairwise(things + things[:1] if cyclic else things))


def before(things: tuple[str, ...], *, cyclic: bool = False) -> tuple[Fact, ...]:
    """Each thing's predecessor."""
    return facts_of((b, a) for a, b in pairwise(things + things[:1] if cyclic else things))


def unique(facts: tuple[Fact, ...]) -> tuple[Fact, ...]:
    """The facts whose arguments lead to one answer only."""
    answers: dict[tuple[str, ...], set[str]] = {}
    for fact in facts:
        answers.setdefault(fact.args, set()).add(fact.answer)
    return tuple(fact for fact in facts if len(answers[fact.args]) == 1)


def both_ways(pairs: tuple[tuple[str, ...], ...]) -> tuple[Fact, ...]:
    """Facts of a symmetric relation, where only one answer is possible."""
    return unique(facts_of(pairs) + facts_of((b, a) for a, b in pairs))


def numbers(operation: str) -> tuple[Fact, ...]:
    """Arithmetic on whole numbers: sums up to 20, differences from at most 20, doubles and comparisons."""
    small = range(21)
    if operation == "sum":
        return facts_of(((str(a), str(b)), str(a + b)) for a in small for b in small if a + b <= 20)
    if operation == "difference":
        return facts_of(((str(a), str(b)), str(a - b)) for a in small for b in small if b <= a)
    if operation == "double":
        return facts_of((str(a), str(2 * a)) for a in range(1, 31))
    pairs = [(a, b) for a in range(1, 31) for b in range(1, 31) if a != b]
    return facts_of(((str(a), str(b)), str(max(a, b))) for a, b in pairs)


GEOGRAPHY = (
    closed(
        "capital", "geography", column(world.COUNTRIES, 0, 1), noun="capital of {0}",
        train=(
            "The city that people call the capital of {0} is",
            "The capital city of {0} is called",
            "{0} has its capital in",
            "The government of {0} sits in the capital,",
        ),
        own="The city that is the capital of {0} is",
    ),
    closed(
        "capital-of", "geography", column(world.COUNTRIES, 1, 0), noun="country whose capital is {0}",
        train=(
            "{0} is the capital of",
            "{0} is the capital city of",
            "The city of {0} is the capital of",
            "The place called {0} is the capital of",
        ),
        own="The city called {0} is the capital of",
    ),
    closed(
        "currency", "geography", column(world.COUNTRIES, 0, 3), noun="currency of {0}",
        train=("In {0} people pay with the", "The money used in {0} is the", "The currency used in {0} is called the"),
        own="In the shops of {0} people pay with the currency called the",
    ),
    closed(
        "language", "geography", column(world.COUNTRIES, 0, 2), noun="language of {0}",
        train=("People in {0} speak", "The main language of {0} is", "The language spoken in {0} is"),
        own="The main language that people in {0} speak is",
    ),
    closed(
        "continent", "geography", column(world.COUNTRIES, 0, 4), noun="continent of {0}",
        train=(
            "{0} lies in",
            "{0} is a country on the continent of",
            "On the map {0} is part of",
            "{0} lies on the continent of",
        ),
        own="On the map {0} lies on the continent of",
    ),
    closed(
        "adjective", "geography", column(world.COUNTRIES, 0, 5), noun="adjective for {0}",
        train=("Something made in {0} is called", "A thing that comes from {0} is", "What comes from {0} is called"),
        own="A thing made in {0} is called",
    ),
    closed(
        "neighbour", "geography", facts_of(world.ONLY_NEIGHBOUR), noun="only neighbour of {0}",
        train=(
            "{0} has a land border only with",
            "On land, {0} borders only on",
            "The one country that borders {0} is",
        ),
        own="The only country that has a land border with {0} is", boost=2.0,
    ),
    closed(
        "city", "geography", facts_of(world.CITIES), noun="country of the city of {0}",
        train=(
            "{0} is a city in",
            "The city of {0} lies in",
            "If you visit {0}, you are in",
            "If you travel to the city of {0}, you are in the country",
        ),
        own="If you visit the city of {0}, you are in the country",
    ),
    closed(
        "landmark", "geography", facts_of(world.LANDMARKS), noun="home city of the {0}",
        train=(
            "The {0} can be seen in",
            "To see the {0}, travel to",
            "The {0} stands in the city of",
            "The {0} can be found in the city of",
        ),
        own="The {0} can be visited in the city of", boost=1.5,
    ),
)  # fmt: skip

SCIENCE = (
    closed(
        "symbol", "science", column(world.ELEMENTS, 2, 1), noun="chemical symbol for {0}",
        train=("The element {0} has the symbol", "Chemists write {0} as", "The symbol of the element {0} is"),
        own="Chemists write the element {0} with the symbol",
    ),
    closed(
        "element", "science", column(world.ELEMENTS, 1, 2), noun="element with the symbol {0}",
        train=("{0} is the symbol of the element", "The symbol {0} stands for", "Chemists write {0} for the element"),
        own="The symbol {0} stands for the element",
    ),
    closed(
        "atomic-number", "science", column(world.ELEMENTS, 2, 0), noun="atomic number of {0}",
        train=(
            "The element {0} has atomic number",
            "In the table of elements, {0} is number",
            "{0} has the atomic number",
        ),
        own="In the table of elements, {0} has the atomic number",
    ),
    closed(
        "planet-after", "science", after(world.PLANETS), noun="planet after {0}",
        train=("Counting from the sun, after {0} comes", "The next planet after {0} is", "The planet outside {0} is"),
        own="Counting from the sun, the next planet after {0} is", boost=2.0,
    ),
    closed(
        "planet-order", "science",
        facts_of((words.ORDINALS[i], planet) for i, planet in enumerate(world.PLANETS)), noun="{0} planet from the sun",
        train=(
            "Counting from the sun, the {0} planet is",
            "The {0} of the planets is",
            "The name of the {0} planet is",
        ),
        own="The name of the {0} planet from the sun is", boost=2.0,
    ),
)  # fmt: skip

CALENDAR = (
    closed(
        "month-after", "calendar", after(words.MONTHS, cyclic=True), noun="month after {0}",
        train=("After {0} comes the month of", "{0} is followed by the month of", "The month that follows {0} is"),
        own="The next month after {0} is", boost=1.5,
    ),
    closed(
        "month-before", "calendar", before(words.MONTHS, cyclic=True), noun="month before {0}",
        train=("Before {0} comes the month of", "{0} is preceded by the month of", "The month that precedes {0} is"),
        own="The last month before {0} is", boost=1.5,
    ),
    closed(
        "weekday-after", "calendar", after(words.WEEKDAYS, cyclic=True), noun="day after {0}",
        train=(
            "If today is {0}, tomorrow is",
            "The day that follows {0} is",
            "{0} is followed by",
            "Today it is {0}, so tomorrow it is",
        ),
        own="Today is {0}, so tomorrow is", boost=2.0,
    ),
    closed(
        "weekday-before", "calendar", before(words.WEEKDAYS, cyclic=True), noun="day before {0}",
        train=(
            "If today is {0}, yesterday was",
            "The day that precedes {0} is",
            "{0} is preceded by",
            "Today it is {0}, so yesterday it was",
        ),
        own="Today is {0}, so yesterday was", boost=2.0,
    ),
    closed(
        "month-number", "calendar",
        facts_of((month, str(i)) for i, month in enumerate(words.MONTHS, 1)), noun="number of the month of {0}",
        train=(
            "In the calendar {0} is month number",
            "{0} is month number",
            "Written as a number, the month of {0} is",
        ),
        own="In the calendar the month of {0} is number", boost=1.5,
    ),
    closed(
        "month-order", "calendar",
        facts_of((words.ORDINALS[i], month) for i, month in enumerate(words.MONTHS)), noun="{0} month of the year",
        train=("In the calendar the {0} month is", "The {0} of the months is", "The name of the {0} month is"),
        own="The name of the {0} month of the year is", boost=1.5,
    ),
)  # fmt: skip

ARITHMETIC = (
    closed(
        "sum", "arithmetic", numbers("sum"), noun="sum of {0} and {1}",
        train=(
            "{0} plus {1} equals",
            "{0} + {1} =",
            "If you add {0} and {1}, you get",
            "Work out {0} plus {1}: you get",
        ),
        own="If you work out {0} plus {1}, you get", boost=2.5,
    ),
    closed(
        "difference", "arithmetic", numbers("difference"), noun="difference of {0} and {1}",
        train=(
            "{0} minus {1} equals",
            "{0} - {1} =",
            "If you take {1} from {0}, you get",
            "Work out {0} minus {1}: you get",
        ),
        own="If you work out {0} minus {1}, you get", boost=2.5,
    ),
    closed(
        "double", "arithmetic", numbers("double"), noun="double of {0}",
        train=(
            "Twice {0} is",
            "Two times {0} equals",
            "If you double {0}, you get",
            "If you count {0} two times, you get",
        ),
        own="If you take {0} two times, you get", boost=1.5,
    ),
    closed(
        "larger", "arithmetic", numbers("larger"), noun="larger of {0} and {1}",
        train=(
            "Of {0} and {1}, the larger number is",
            "Compare {0} and {1}: the larger is",
            "max({0}, {1}) =",
            "Compare the two numbers {0} and {1}. The larger is",
        ),
        own="Compare the numbers {0} and {1}. The larger is", boost=0.4,
    ),
)  # fmt: skip

SEQUENCES = (
    closed(
        "letter-after", "sequence", after(words.LETTERS), noun="letter after {0}",
        train=(
            "In the alphabet {0} is followed by",
            "After the letter {0} comes",
            "The next letter after {0} is",
            "In the alphabet, after {0} we find the letter",
        ),
        own="In the alphabet, after {0} comes the letter", boost=1.5,
    ),
    closed(
        "letter-before", "sequence", before(words.LETTERS), noun="letter before {0}",
        train=(
            "In the alphabet {0} is preceded by",
            "Before the letter {0} comes",
            "The last letter before {0} is",
            "In the alphabet, before {0} we find the letter",
        ),
        own="In the alphabet, before {0} comes the letter", boost=1.5,
    ),
    closed(
        "counting-up", "sequence",
        facts_of((tuple(str(n + i) for i in range(3)), str(n + 3)) for n in range(60)),
        noun="number after {0}, {1}, {2}",
        train=(
            "Count: {0} {1} {2}",
            "We count up: {0}, {1}, {2},",
            "{0} {1} {2}",
            "Start from {0} and count up: {0}, {1}, {2},",
        ),
        own="Start at {0} and count up: {0}, {1}, {2},",
    ),
    closed(
        "counting-down", "sequence",
        facts_of((tuple(str(n - i) for i in range(3)), str(n - 3)) for n in range(3, 61)),
        noun="number below {0}, {1}, {2}",
        train=(
            "Count down: {0} {1} {2}",
            "We count down: {0}, {1}, {2},",
            "Backwards: {0} {1} {2}",
            "Start from {0} and count down: {0}, {1}, {2},",
        ),
        own="Start at {0} and count down: {0}, {1}, {2},",
    ),
    closed(
        "number-after", "sequence", after(words.NUMBER_WORDS), noun="number after {0}",
        train=(
            "After {0} comes the number",
            "Count on: {0},",
            "One more than {0} is",
            "If we count on from {0}, the next is the number",
        ),
        own="If you count on from {0}, the next is the number", boost=1.5,
    ),
    closed(
        "digits", "sequence",
        facts_of((word, str(i)) for i, word in enumerate(words.NUMBER_WORDS)), noun="numeral for {0}",
        train=(
            "In digits {0} is written",
            "The number {0} written in digits is",
            "Written in digits, {0} is",
            "In digits the word {0} is",
        ),
        own="Written in digits, the word {0} is", boost=1.5,
    ),
    closed(
        "ordinal", "sequence",
        facts_of(zip(words.NUMBER_WORDS[1:], words.ORDINALS, strict=True)), noun="ordinal of {0}",
        train=(
            "The numeral {0} has the ordinal",
            "The ordinal of the number {0} is",
            "Number {0} in a row is the",
            "After counting to {0}, the last one is the",
        ),
        own="The number {0} has the ordinal", boost=1.5,
    ),
)  # fmt: skip

LANGUAGE = (
    closed(
        "opposite", "language", both_ways(words.OPPOSITES), noun="opposite of {0}",
        train=(
            "The opposite of the adjective {0} is",
            "The word {0} is the opposite of",
            "If something is not {0}, it may be the opposite:",
            "{0} and its opposite:",
        ),
        own="The opposite of the word {0} is",
    ),
    closed(
        "plural", "language", column(words.PLURALS, 0, 1), noun="plural of {0}",
        train=("One {0}, two", "The word {0} has the plural", "More than one {0}: many"),
        own="The plural of the word {0} is",
    ),
    closed(
        "past-tense", "language", column(words.PASTS, 0, 1), noun="past tense of {0}",
        train=("Today they {0}, yesterday they", "The verb {0} has the past tense", "Now I {0}; last year I"),
        own="The past tense of the verb {0} is",
    ),
    closed(
        "comparative", "language", column(words.DEGREES, 0, 1), noun="comparative of {0}",
        train=("This one is {0}, but that one is even", "The word {0} has the comparative", "Not just {0} but"),
        own="The comparative of the word {0} is",
    ),
    closed(
        "superlative", "language", column(words.DEGREES, 0, 2), noun="superlative of {0}",
        train=(
            "Many are {0}, but this one is the",
            "The word {0} has the superlative",
            "Not just {0} but, of all, the",
        ),
        own="The superlative of the word {0} is",
    ),
    closed(
        "initial", "language",
        facts_of((word, word[0].upper()) for word in words.PLAIN_NOUNS), noun="first letter of {0}",
        train=(
            "The word {0} begins with the letter",
            "{0} starts with the letter",
            "In a dictionary, look for {0} under",
        ),
        own="The word {0} starts with the letter",
    ),
    *(
        closed(
            name.lower(), "translation", column(words.TRANSLATIONS, 0, i), noun=f"{name} word for {{0}}",
            train=(f"In {name} the word {{0}} is", f"{{0}} in {name} is", f"A {name} speaker calls the {{0}}"),
            own=f"In {name} the word for {{0}} is", boost=1.2,
        )
        for i, name in enumerate(("French", "Spanish", "German"), 1)
    ),
)  # fmt: skip

NATURE = (
    closed(
        "young", "nature", column(world.ANIMALS, 0, 1), noun="name for the young of the {0}",
        train=("A young {0} is called a", "A baby {0} is a", "The young of the {0} is called a"),
        own="The baby of the {0} is called a",
    ),
    closed(
        "sound", "nature", column(world.ANIMALS, 0, 2), noun="verb for the sound of the {0}",
        train=(
            "The {0} makes its sound: it",
            "When the {0} is excited, it",
            "You can hear how the {0}",
            "When you listen to the {0}, it",
        ),
        own="You can listen to how the {0}", boost=1.5,
    ),
    closed(
        "animal-home", "nature", column(world.ANIMALS, 0, 3), noun="home of the {0}",
        train=(
            "The {0} sleeps in the",
            "The home where the {0} lives is the",
            "The {0} lives in the",
            "The {0} has its bed in the",
        ),
        own="The {0} has its home in the", boost=1.5,
    ),
    closed(
        "colour", "nature", facts_of(world.COLOURS), noun="colour of the {0}",
        train=("The {0} has the colour", "The {0} is coloured", "To paint the {0}, take the colour"),
        own="To draw the {0}, take the colour",
    ),
    closed(
        "kind", "nature", unique(facts_of(world.KINDS)), noun="group to which the {0} belongs",
        train=("The {0} belongs to the group called", "In the picture book the {0} is under", "The {0} is a kind of"),
        own="In the picture book the {0} belongs to the group called",
    ),
    closed(
        "body-part", "nature", facts_of(world.BODY), noun="part of the body used to {0}",
        train=(
            "To {0} we use the",
            "We {0} with the",
            "When people {0}, they use the",
            "In order to {0}, we need the",
        ),
        own="In order to {0}, people use the", boost=2.0,
    ),
)  # fmt: skip

PEOPLE = (
    closed(
        "inventor", "people", facts_of(world.INVENTORS), noun="inventor of the {0}",
        train=("The {0} was invented by", "The man who invented the {0} was", "The person behind the {0} is"),
        own="The person who invented the {0} was", boost=1.5,
    ),
    closed(
        "author", "people", facts_of(world.AUTHORS), noun="author of {0}",
        train=("The book {0} was written by", "The writer of {0} is", "{0} was written by"),
        own="The author who wrote the book {0} is", boost=1.5,
    ),
    closed(
        "painter", "people", facts_of(world.PAINTERS), noun="painter of the {0}",
        train=("The {0} was painted by", "The artist who painted the {0} is", "The picture called {0} was painted by"),
        own="The painter who painted the {0} is", boost=1.5,
    ),
    closed(
        "composer", "people", facts_of(world.COMPOSERS), noun="composer of the {0}",
        train=("The {0} was composed by", "The music of the {0} is by", "The one who wrote the music of the {0} is"),
        own="The music of the {0} was composed by", boost=1.5,
    ),
    closed(
        "tool", "people", column(world.WORKERS, 0, 1), noun="tool of the {0}",
        train=("The {0} works with the", "In the hand of the {0} you see the", "The {0} cannot work without the"),
        own="The tool that the {0} works with is the",
    ),
    closed(
        "workplace", "people", column(world.WORKERS, 0, 2), noun="workplace of the {0}",
        train=("The {0} works in the", "Every morning the {0} goes to the", "You meet the {0} at work in the"),
        own="Every day the {0} works in the",
    ),
)  # fmt: skip


def through_capital(target: int) -> tuple[Fact, ...]:
    """Facts that lead from a country's capital to another column of the same country."""
    return column(world.COUNTRIES, 1, target)


def through_city() -> tuple[Fact, ...]:
    """City -> capital of its country."""
    return facts_of((city, CAPITAL[country]) for city, country in world.CITIES)


OPPOSITE = {fact.args[0]: fact.answer for fact in both_ways(words.OPPOSITES)}


def through_opposite() -> tuple[Fact, ...]:
    """Word -> the French word for its opposite."""
    french = {english: word for english, word, *_ in words.TRANSLATIONS}
    return facts_of((word, french[other]) for word, other in OPPOSITE.items() if other in french)


TWO_HOP = (
    closed(
        "currency-of-capital", "two-hop", through_capital(3), noun="currency of the country whose capital is {0}",
        train=(
            "{0} is the capital of a country that pays with the",
            "In the country around its capital {0} they pay with the",
        ),
        own="In the country whose capital is {0} people pay with the", through=COUNTRY,
    ),
    closed(
        "language-of-capital", "two-hop", through_capital(2), noun="language of the country whose capital is {0}",
        train=(
            "{0} is the capital of a country where people speak",
            "In the country around its capital {0} they speak",
        ),
        own="In the country whose capital is {0} people speak", through=COUNTRY,
    ),
    closed(
        "continent-of-capital", "two-hop", through_capital(4), noun="continent of the country whose capital is {0}",
        train=("{0} is the capital of a country that lies in", "The country around its capital {0} lies in"),
        own="The country whose capital is {0} lies in", through=COUNTRY,
    ),
    closed(
        "capital-of-city", "two-hop", through_city(), noun="capital of the country of the city of {0}",
        train=(
            "The city of {0} lies in a country whose capital is",
            "In the country where {0} lies, the capital is",
            "The country where {0} lies has the capital",
        ),
        own="The country where the city of {0} lies has the capital", boost=1.2,
        through={city: country for city, country, *_ in world.CITIES},
    ),
    closed(
        "number-of-symbol", "two-hop", column(world.ELEMENTS, 1, 0),
        noun="atomic number of the element with the symbol {0}",
        train=(
            "{0} is the symbol of an element whose atomic number is",
            "The element written {0} has the atomic number",
        ),
        own="The element with the symbol {0} has the atomic number",
        through={symbol: element for _, symbol, element in world.ELEMENTS},
    ),
    closed(
        "young-by-sound", "two-hop",
        unique(column(world.ANIMALS, 2, 1)),
        noun="name for the young of the animal that {0}",
        train=("An animal {0}, and its young is called a", "The young of the animal that {0} is called a"),
        own="The animal that {0} has a baby called a", boost=2.0,
        through={sound: animal for animal, _, sound, _ in world.ANIMALS},
    ),
    closed(
        "french-opposite", "two-hop", through_opposite(), noun="French word for the opposite of {0}",
        train=("In French the opposite of {0} is", "The opposite of {0}, in French, is"),
        own="In French the word for the opposite of {0} is", boost=2.0, through=OPPOSITE,
    ),
)  # fmt: skip

FACTS: tuple[Relation, ...] = (
    GEOGRAPHY + SCIENCE + CALENDAR + ARITHMETIC + SEQUENCES + LANGUAGE + NATURE + PEOPLE + TWO_HOP
)
