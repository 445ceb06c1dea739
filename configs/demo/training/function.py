"""The task `function`: a spoken request, answered with the call of one function as JSON."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from configs.demo.training.examples import Example, Task
from configs.demo.training.words import CITIES, DAYS, LANGUAGES, NAMES, ROOMS, words_of

GENRES = words_of("blues classical country dance folk jazz metal opera pop punk rock soul")
CUISINES = words_of("Chinese French Greek Indian Italian Japanese Korean Mexican Spanish Thai")
CURRENCIES = {
    "dollars": "USD",
    "euros": "EUR",
    "francs": "CHF",
    "pounds": "GBP",
    "rupees": "INR",
    "yen": "JPY",
    "yuan": "CNY",
}
EVENTS = words_of("breakfast chess concert dentist dinner exam lunch meeting party rehearsal yoga")
TIMERS = words_of("bread cake coffee eggs laundry noodles pasta pizza rice tea")
TEXTS = (
    "dinner is ready",
    "the train is late",
    "I am on my way",
    "the door is open",
    "we need more milk",
    "the game starts soon",
    "I will call later",
    "the keys are here",
    "lunch is at noon",
    "the package arrived",
    "we won the match",
    "I found the book",
    "it is raining outside",
    "the car is fixed",
    "school is closed",
    "I miss the old house",
)

Value = str | int


@dataclass(frozen=True, slots=True)
class Function:
    """A function one can ask for: its slots, in the order of its arguments, and its wordings."""

    name: str
    slots: dict[str, Callable[[Random], Value]]
    requests: tuple[str, ...]


def _one_of(values: list[str] | tuple[str, ...]) -> Callable[[Random], Value]:
    return lambda random: random.choice(values)


def _between(first: int, last: int) -> Callable[[Random], Value]:
    return lambda random: random.randint(first, last)


def _time(random: Random) -> str:
    return f"{random.randint(6, 22)}:{random.choice(('00', '15', '30', '45'))}"


FUNCTIONS = (
    Function(
        "get_weather",
        {"city": _one_of(CITIES), "day": _one_of(DAYS)},
        (
            "What is the weather in {city} on {day}?",
            "How will the weather be on {day} in {city}?",
            "Will it rain in {city} on {day}?",
            "Give me the forecast for {city} for {day}.",
        ),
    ),
    Function(
        "set_alarm",
        {"day": _one_of(DAYS), "time": _time},
        (
            "Wake me up on {day} at {time}.",
            "Set an alarm for {time} on {day}.",
            "I have to get up at {time} on {day}.",
        ),
    ),
    Function(
        "send_message",
        {"to": _one_of(NAMES), "text": _one_of(TEXTS)},
        (
            "Tell {to} that {text}.",
            "Send {to} a message that {text}.",
            "Let {to} know that {text}.",
            "Write to {to} that {text}.",
        ),
    ),
    Function(
        "play_music",
        {"genre": _one_of(GENRES), "room": _one_of(ROOMS)},
        (
            "Play some {genre} in the {room}.",
            "I want to hear {genre} in the {room}.",
            "Put on {genre} music in the {room}, please.",
        ),
    ),
    Function(
        "book_table",
        {"cuisine": _one_of(CUISINES), "people": _between(2, 12), "time": _time},
        (
            "Book a table for {people} at a {cuisine} restaurant at {time}.",
            "Reserve a {cuisine} place for {people} people at {time}.",
            "We are {people} and want to eat {cuisine} food at {time}.",
        ),
    ),
    Function(
        "set_temperature",
        {"room": _one_of(ROOMS), "degrees": _between(15, 28)},
        (
            "Set the {room} to {degrees} degrees.",
            "Heat the {room} to {degrees} degrees.",
            "I want it to be {degrees} degrees in the {room}.",
        ),
    ),
    Function(
        "create_event",
        {"title": _one_of(EVENTS), "with": _one_of(NAMES), "day": _one_of(DAYS)},
        (
            "Add {title} with {with} on {day} to my calendar.",
            "I have {title} with {with} on {day}, note it down.",
            "Schedule {title} with {with} for {day}.",
        ),
    ),
    Function(
        "find_flights",
        {"from": _one_of(CITIES), "to": _one_of(CITIES), "day": _one_of(DAYS)},
        (
            "Find a flight from {from} to {to} on {day}.",
            "I want to fly from {from} to {to} on {day}.",
            "On {day} I need a plane to {to} from {from}.",
        ),
    ),
    Function(
        "set_timer",
        {"label": _one_of(TIMERS), "minutes": _between(1, 90)},
        (
            "Set a timer of {minutes} minutes for the {label}.",
            "The {label} takes {minutes} minutes, start a timer.",
            "Remind me about the {label} in {minutes} minutes.",
        ),
    ),
    Function(
        "translate",
        {"text": _one_of(TEXTS), "language": _one_of(LANGUAGES)},
        (
            "Translate '{text}' into {language}.",
            "How do you say '{text}' in {language}?",
            "What is '{text}' in {language}?",
        ),
    ),
)
CONVERT_REQUESTS = (
    "Convert {amount} {source} to {target}.",
    "How many {target} are {amount} {source}?",
    "What are {amount} {source} worth in {target}?",
)


def draw(random: Random) -> Example:
    """Draw one request; the key is the call, so its arguments meet in training in no wording."""
    choice = random.randrange(len(FUNCTIONS) + 1)
    if choice == len(FUNCTIONS):
        request, call = _convert(random)
    else:
        request, call = _simple(random, FUNCTIONS[choice])
    return Example(prompt=request, answer=call, key=call)


def _simple(random: Random, function: Function) -> tuple[str, str]:
    arguments = {slot: pick(random) for slot, pick in function.slots.items()}
    request = random.choice(function.requests).format(**arguments)
    return request, _call(function.name, arguments)


def _convert(random: Random) -> tuple[str, str]:
    """Draw the one request whose arguments are codes rather than words of the request."""
    source, target = random.sample(list(CURRENCIES), 2)
    amount = random.randint(1, 999)
    request = random.choice(CONVERT_REQUESTS).format(amount=amount, source=source, target=target)
    arguments: dict[str, Value] = {
        "amount": amount,
        "from": CURRENCIES[source],
        "to": CURRENCIES[target],
    }
    return request, _call("convert_currency", arguments)


def _call(name: str, arguments: dict[str, Value]) -> str:
    return json.dumps({"name": name, "arguments": arguments})


FUNCTION = Task("function", draw)
