"""The task `emotion`: what happened to somebody, answered with one word for the feeling."""

from random import Random

from configs.demo.training.examples import Example, Task

OPENINGS = (
    "Today",
    "Yesterday",
    "Last night",
    "This morning",
    "On Sunday",
    "A week ago",
    "At work",
    "On the way home",
    "After school",
    "Before lunch",
    "At the station",
    "In the evening",
)

# Each feeling: what happened, and how the person took it. Any event goes with any reaction.
FEELINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "joy": (
        (
            "my sister got married",
            "we danced until midnight",
            "I got the job I wanted",
            "my old friends came to visit",
            "our team won the cup",
            "the sun came out for our picnic",
            "I held my baby for the first time",
            "we sang songs around the fire",
        ),
        (
            "I cannot stop smiling",
            "I could jump up and down",
            "everybody laughed a lot",
            "it was a wonderful time",
            "I am so happy",
            "I feel great",
        ),
    ),
    "sadness": (
        (
            "my grandfather died",
            "my best friend moved away",
            "we had to sell the old house",
            "our dog did not wake up",
            "nobody came to my birthday",
            "she left me for good",
            "I lost the ring of my mother",
            "they closed my favourite theatre",
        ),
        (
            "I cried for hours",
            "my heart is broken",
            "I feel empty",
            "I miss how it was",
            "the tears will not stop",
            "I am so unhappy",
        ),
    ),
    "anger": (
        (
            "somebody scratched my new car",
            "he lied to me again",
            "the neighbour shouted at my children",
            "they cancelled my order without a word",
            "my brother broke my phone",
            "a man pushed in front of me",
            "my boss took the credit for my work",
            "they charged me twice",
        ),
        (
            "I slammed the door",
            "I am furious",
            "I wanted to shout",
            "my blood is boiling",
            "I will not stand for it",
            "I am so mad",
        ),
    ),
    "fear": (
        (
            "I heard steps behind me in the dark",
            "the plane dropped suddenly",
            "a big dog ran at me",
            "the lights went out in the cellar",
            "I got lost in the forest",
            "the doctor asked me to come back at once",
            "somebody tried to open my window",
            "the bridge began to shake",
        ),
        (
            "my hands are trembling",
            "I could not breathe",
            "I ran as fast as I could",
            "I dare not sleep alone",
            "I was terrified",
            "I am so scared",
        ),
    ),
    "surprise": (
        (
            "my cousin stood at the door after ten years",
            "the quiet boy began to sing",
            "I found a letter from myself",
            "a parrot said my name",
            "they all hid in the dark and yelled my name",
            "the box was full of gold coins",
            "it snowed in July",
            "my twin walked into the shop",
        ),
        (
            "I did not see that coming",
            "my jaw dropped",
            "I could hardly believe my eyes",
            "nobody had expected it",
            "I was stunned",
            "I am so astonished",
        ),
    ),
    "pride": (
        (
            "my daughter finished her degree",
            "I ran my first marathon",
            "my painting hangs in the museum",
            "I built the boat with my own hands",
            "my son saved a child",
            "they named me player of the year",
            "my students passed the hard exam",
            "my book was printed",
        ),
        (
            "I hold my head high",
            "all that work paid off",
            "I tell everyone about it",
            "I would not change a thing I did",
            "what an achievement",
            "I am so proud",
        ),
    ),
    "gratitude": (
        (
            "a stranger paid for my meal",
            "the nurse stayed with me all night",
            "my neighbour fixed my roof for free",
            "she lent me her car for a month",
            "a girl gave me her seat",
            "my teacher stayed late to help me",
            "they found and returned my wallet",
            "my friend drove me to the hospital",
        ),
        (
            "I owe them a lot",
            "I want to say thank you",
            "how can I ever repay it",
            "such kindness is rare",
            "I will not forget that help",
            "I am so thankful",
        ),
    ),
    "boredom": (
        (
            "the talk went on for four hours",
            "I watched the paint dry",
            "I waited in line the whole day",
            "there was nothing to do",
            "he told the same story again",
            "I copied numbers into a table",
            "we sat in traffic without a radio",
            "the film had no plot",
        ),
        (
            "I kept looking at the clock",
            "I yawned all the time",
            "I nearly fell asleep",
            "the minutes crawled by",
            "it was so dull",
            "nothing interests me",
        ),
    ),
}


def draw(random: Random) -> Example:
    """Draw one sentence; the key is the pair of event and reaction, under whatever opening."""
    feeling = random.choice(list(FEELINGS))
    events, reactions = FEELINGS[feeling]
    event, reaction = random.choice(events), random.choice(reactions)
    sentence = f"{random.choice(OPENINGS)} {event} and {reaction}."
    return Example(prompt=sentence, answer=feeling, key=f"{event} and {reaction}")


EMOTION = Task("emotion", draw)
