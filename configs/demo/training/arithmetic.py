"""The task `math`: a sum, difference or product of small numbers, worked out column by column."""

from random import Random

from configs.demo.training.examples import Example, Task
from configs.demo.training.words import NAMES, THINGS

PLAIN_REQUESTS = (
    "What is {sum}?",
    "Calculate {sum}.",
    "Compute {sum}.",
    "How much is {sum}?",
    "{sum} = ?",
    "Please work out {sum}.",
)
ADD_REQUESTS = (
    "Add {a} and {b}.",
    "What is {a} plus {b}?",
    "{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?",
    "{name} found {a} {things} and then {b} {things}. How many is that in total?",
    "There are {a} {things} on the table and {b} in the bag. How many {things} are there?",
)
SUBTRACT_REQUESTS = (
    "Subtract {b} from {a}.",
    "What is {a} minus {b}?",
    "{name} had {a} {things} and gave away {b}. How many {things} are left?",
    "{name} has {a} {things} and loses {b} of them. How many {things} does {name} still have?",
    "Of {a} {things}, {b} are broken. How many {things} are fine?",
)
MULTIPLY_REQUESTS = (
    "Multiply {a} by {b}.",
    "What is {a} times {b}?",
    "Each bag holds {a} {things}. How many {things} are in {b} bags?",
    "{name} buys {a} {things} every day for {b} days. How many {things} is that?",
    "There are {a} {things} in a row and {b} rows. How many {things} are there?",
)


def draw(random: Random) -> Example:
    """Draw one question; the key is the sum itself, with a commutative sum's operands in order."""
    kind = random.choice((_add, _subtract, _multiply))
    return kind(random)


def _add(random: Random) -> Example:
    a, b = random.randrange(10, 100), random.randrange(10, 100)
    ones = a % 10 + b % 10
    carry = ones // 10
    tens = a // 10 + b // 10 + carry
    steps = (
        f"Ones: {a % 10} + {b % 10} = {ones}{_carry(ones)}. "
        f"Tens: {a // 10} + {b // 10}{' + 1' if carry else ''} = {tens}. Answer: {a + b}"
    )
    prompt = _request(random, ADD_REQUESTS, f"{a} + {b}", a, b)
    return Example(prompt, f"{a} + {b}. {steps}", key=f"{min(a, b)} + {max(a, b)}")


def _subtract(random: Random) -> Example:
    a, b = sorted((random.randrange(10, 100), random.randrange(10, 100)), reverse=True)
    borrow = a % 10 < b % 10
    ones = a % 10 + 10 * borrow
    tens = a // 10 - b // 10 - borrow
    steps = (
        f"Ones: {'borrow 1, ' if borrow else ''}{ones} - {b % 10} = {ones - b % 10}. "
        f"Tens: {a // 10} - {b // 10}{' - 1' if borrow else ''} = {tens}. Answer: {a - b}"
    )
    prompt = _request(random, SUBTRACT_REQUESTS, f"{a} - {b}", a, b)
    return Example(prompt, f"{a} - {b}. {steps}", key=f"{a} - {b}")


def _multiply(random: Random) -> Example:
    a, b = random.randrange(11, 100), random.randrange(2, 10)
    ones = a % 10 * b
    carry = ones // 10
    tens = a // 10 * b
    total = tens + carry
    steps = (
        f"Ones: {a % 10} x {b} = {ones}{_carry(ones)}. "
        f"Tens: {a // 10} x {b} = {tens}{f', {tens} + {carry} = {total}' if carry else ''}. "
        f"Answer: {a * b}"
    )
    prompt = _request(random, MULTIPLY_REQUESTS, f"{a} x {b}", a, b)
    return Example(prompt, f"{a} x {b}. {steps}", key=f"{a} x {b}")


def _carry(ones: int) -> str:
    return f", write {ones % 10}, carry {ones // 10}" if ones >= 10 else ""


def _request(random: Random, stories: tuple[str, ...], plain: str, a: int, b: int) -> str:
    """Word the question, plainly (`plain` is the sum in symbols) or as a story."""
    if random.random() < 0.4:
        return random.choice(PLAIN_REQUESTS).format(sum=plain)
    name, things = random.choice(NAMES), random.choice(THINGS)
    return random.choice(stories).format(a=a, b=b, name=name, things=things)


MATH = Task("math", draw)
