"""The four tasks, in the order in which tables and files list them."""

from configs.demo.training.arithmetic import MATH
from configs.demo.training.emotion import EMOTION
from configs.demo.training.function import FUNCTION
from configs.demo.training.sql import SQL

TASKS = (SQL, MATH, FUNCTION, EMOTION)
