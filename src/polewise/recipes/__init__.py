"""Complete runs, ready to train: what the commands begin with."""

from polewise.recipes.runs import demo_text as demo_text
from polewise.recipes.runs import digits as digits
from polewise.recipes.runs import etth1 as etth1
from polewise.recipes.runs import focus_mqar as focus_mqar
from polewise.recipes.runs import focus_recall as focus_recall
from polewise.recipes.runs import induction as induction
from polewise.recipes.runs import japanese_vowels as japanese_vowels
from polewise.recipes.runs import listops as listops
from polewise.recipes.runs import selective_copy as selective_copy
from polewise.recipes.runs import spoken_digits as spoken_digits
