"""Closed lists of words from which the tasks fill their slots."""


def words_of(text: str) -> list[str]:
    """Return the words of a line; a list that is read as a line is seen at a glance."""
    return text.split()


CITIES = words_of(
    "Amsterdam Athens Berlin Boston Cairo Chicago Delhi Dublin Geneva Hamburg Helsinki Istanbul "
    "Lagos Lima Lisbon London Madrid Milan Moscow Mumbai Munich Nairobi Oslo Paris Prague Rome "
    "Seattle Seoul Sydney Tokyo Toronto Vienna Warsaw Zurich"
)

COUNTRIES = words_of(
    "Austria Brazil Canada Chile China Denmark Egypt Finland France Germany Ghana Greece India "
    "Ireland Italy Japan Kenya Mexico Norway Peru Poland Portugal Spain Sweden Turkey Vietnam"
)

COLORS = words_of("black blue brown green grey orange pink purple red silver white yellow")

LANGUAGES = words_of("Arabic Chinese Dutch English French German Italian Japanese Polish Spanish")

NAMES = words_of(
    "Alice Anna Ben Carla Daniel David Emma Felix Grace Hannah Ivan Jack Julia Kate Leo Lucy Maria "
    "Mark Nina Oliver Omar Paul Peter Rosa Sam Sarah Sofia Tim Tom Victor"
)

DAYS = words_of("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

ROOMS = words_of("attic bathroom bedroom garage garden hall kitchen library nursery office")

THINGS = words_of(
    "apples balls books bottles boxes cards chairs coins cookies cups eggs flowers lemons letters "
    "marbles oranges pencils plates stamps stones tickets tomatoes toys"
)
