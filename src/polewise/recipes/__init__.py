"""Complete runs, ready to train: what the commands begin with."""

from polewise.recipes.mqar import focus_mqar as focus_mqar
from polewise.recipes.pixels import digits as digits
from polewise.recipes.recall import focus_recall as focus_recall
from polewise.recipes.series import etth1 as etth1
from polewise.recipes.series import japanese_vowels as japanese_vowels
from polewise.recipes.series import spoken_digits as spoken_digits
from polewise.recipes.synthetic import induction as induction
from polewise.recipes.synthetic import listops as listops
from polewise.recipes.synthetic import selective_copy as selective_copy
from polewise.recipes.text import demo_text as demo_text
