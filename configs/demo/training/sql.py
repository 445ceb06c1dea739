"""The task `sql`: a request in English, answered with one SQL statement."""

from random import Random

from configs.demo.training.examples import Example, Task
from configs.demo.training.words import CITIES, COLORS, COUNTRIES, LANGUAGES, words_of

# A column of words, and what may stand there; columns of one name hold the same in every table.
WORDS = {
    "brand": words_of("Audi Fiat Ford Honda Kia Mazda Skoda Tesla Volvo"),
    "category": words_of("clothing electronics food furniture garden music sports toys"),
    "city": CITIES,
    "color": COLORS,
    "country": COUNTRIES,
    "department": words_of("design finance legal marketing research sales security support"),
    "destination": CITIES,
    "genre": words_of("comedy crime drama fantasy history horror mystery romance"),
    "language": LANGUAGES,
    "origin": CITIES,
    "status": words_of("cancelled delivered lost open paid pending returned shipped"),
    "style": words_of("blues classical disco folk jazz metal pop rock soul"),
    "subject": words_of("art biology chemistry economics law medicine physics"),
}


class Table:
    """A table: columns to show, columns of words, and columns of numbers with their limits."""

    def __init__(self, name: str, shown: str, words: str, numbers: dict[str, int]) -> None:
        """``shown`` and ``words`` are lines of names."""
        self.name = name
        self.shown = words_of(shown)
        self.words = words_of(words)
        self.numbers = numbers


TABLES = (
    Table("customers", "name email", "city country", {"age": 90, "debt": 5000}),
    Table("employees", "name phone", "department city", {"salary": 9000, "age": 70}),
    Table("products", "name code", "category color", {"price": 999, "stock": 500, "weight": 80}),
    Table("orders", "id date", "status city", {"total": 2000, "quantity": 60}),
    Table("students", "name email", "subject country", {"grade": 100, "age": 40}),
    Table("books", "title author", "genre language", {"pages": 1200, "price": 90}),
    Table("flights", "code date", "origin destination", {"seats": 400, "price": 999}),
    Table("movies", "title director", "genre language", {"length": 240, "rating": 100}),
    Table("hotels", "name phone", "city country", {"rooms": 600, "price": 400}),
    Table("cars", "model owner", "brand color", {"price": 9000, "mileage": 9999}),
    Table("songs", "title artist", "style language", {"length": 600, "plays": 9999}),
)

WORD_FILTERS = (
    "with {column} {value}",
    "with the {column} {value}",
    "where the {column} is {value}",
    "whose {column} is {value}",
    "that have {value} as {column}",
)
NUMBER_FILTERS = {
    ">": (
        "with {column} above {value}",
        "with {column} over {value}",
        "whose {column} is more than {value}",
        "where the {column} is greater than {value}",
    ),
    "<": (
        "with {column} below {value}",
        "with {column} under {value}",
        "whose {column} is less than {value}",
        "where the {column} is smaller than {value}",
    ),
    "=": ("whose {column} is exactly {value}", "with {column} of {value}"),
}
SELECT_REQUESTS = (
    "Show the {column} of all {table} {filter}.",
    "List the {column} of {table} {filter}.",
    "Give me the {column} of the {table} {filter}.",
    "Find the {column} of every one of the {table} {filter}.",
    "I need the {column} for all {table} {filter}.",
    "What is the {column} of the {table} {filter}?",
)
COUNT_REQUESTS = (
    "How many {table} are there {filter}?",
    "Count the {table} {filter}.",
    "What is the number of {table} {filter}?",
    "Tell me how many {table} we have {filter}.",
)
AGGREGATES = {
    "AVG": ("average", "mean"),
    "MAX": ("highest", "maximum", "largest"),
    "MIN": ("lowest", "minimum", "smallest"),
    "SUM": ("total", "summed"),
}
AGGREGATE_REQUESTS = (
    "What is the {adjective} {column} of the {table} {filter}?",
    "Compute the {adjective} {column} of {table} {filter}.",
    "Show me the {adjective} {column} for all {table} {filter}.",
)
ORDER_REQUESTS = {
    "DESC": (
        "Show the {column} of the {limit} {table} with the highest {number}.",
        "List the {column} of the top {limit} {table} by {number}.",
        "Which {limit} {table} have the largest {number}? Show the {column}.",
    ),
    "ASC": (
        "Show the {column} of the {limit} {table} with the lowest {number}.",
        "List the {column} of the bottom {limit} {table} by {number}.",
        "Which {limit} {table} have the smallest {number}? Show the {column}.",
    ),
}
GROUP_REQUESTS = (
    "How many {table} are there per {group}?",
    "Count the {table} for each {group}.",
    "Show the number of {table} by {group}.",
)


def draw(random: Random) -> Example:
    """Draw one request, its kind chosen by how many different statements the kind can give."""
    kinds = (_select, _count, _aggregate, _order, _group)
    kind = random.choices(kinds, weights=(10, 5, 5, 4, 1))[0]
    request, statement = kind(random, random.choice(TABLES))
    return Example(prompt=request, answer=statement, key=statement)


def _filter(random: Random, table: Table) -> tuple[str, str]:
    """Draw a condition, as English and as SQL."""
    if random.random() < 0.6:
        column = random.choice(table.words)
        value = random.choice(WORDS[column])
        english = random.choice(WORD_FILTERS).format(column=column, value=value)
        return english, f"{column} = '{value}'"
    number = random.choice(list(table.numbers))
    operator = random.choice(list(NUMBER_FILTERS))
    bound = random.randint(1, table.numbers[number])
    english = random.choice(NUMBER_FILTERS[operator]).format(column=number, value=bound)
    return english, f"{number} {operator} {bound}"


def _select(random: Random, table: Table) -> tuple[str, str]:
    column = random.choice([*table.shown, *table.numbers])
    english, condition = _filter(random, table)
    request = random.choice(SELECT_REQUESTS).format(column=column, table=table.name, filter=english)
    return request, f"SELECT {column} FROM {table.name} WHERE {condition};"


def _count(random: Random, table: Table) -> tuple[str, str]:
    english, condition = _filter(random, table)
    request = random.choice(COUNT_REQUESTS).format(table=table.name, filter=english)
    return request, f"SELECT COUNT(*) FROM {table.name} WHERE {condition};"


def _aggregate(random: Random, table: Table) -> tuple[str, str]:
    function = random.choice(list(AGGREGATES))
    column = random.choice(list(table.numbers))
    english, condition = _filter(random, table)
    request = random.choice(AGGREGATE_REQUESTS).format(
        adjective=random.choice(AGGREGATES[function]),
        column=column,
        table=table.name,
        filter=english,
    )
    return request, f"SELECT {function}({column}) FROM {table.name} WHERE {condition};"


def _order(random: Random, table: Table) -> tuple[str, str]:
    direction = random.choice(list(ORDER_REQUESTS))
    column = random.choice(table.shown)
    number = random.choice(list(table.numbers))
    limit = random.randrange(2, 21)
    request = random.choice(ORDER_REQUESTS[direction]).format(
        column=column, table=table.name, number=number, limit=limit
    )
    order = f"ORDER BY {number} {direction} LIMIT {limit}"
    return request, f"SELECT {column} FROM {table.name} {order};"


def _group(random: Random, table: Table) -> tuple[str, str]:
    group = random.choice(table.words)
    request = random.choice(GROUP_REQUESTS).format(table=table.name, group=group)
    return request, f"SELECT {group}, COUNT(*) FROM {table.name} GROUP BY {group};"


SQL = Task("sql", draw)
