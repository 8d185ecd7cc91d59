"""The Hugging Face family: one configuration and four models for all mixers.

Importing it registers the Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTimeSeriesPrediction,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from polewise.models.cache import PolewiseCache as PolewiseCache
from polewise.models.configuration import PolewiseConfig as PolewiseConfig
from polewise.models.heads import PolewiseForForecasting as PolewiseForForecasting
from polewise.models.heads import (
    PolewiseForSequenceClassification as PolewiseForSequenceClassification,
)
from polewise.models.language_model import PolewiseForCausalLM as PolewiseForCausalLM
from polewise.models.modeling import PolewiseModel as PolewiseModel

AutoConfig.register("polewise", PolewiseConfig, exist_ok=True)
AutoModel.register(PolewiseConfig, PolewiseModel, exist_ok=True)
AutoModelForCausalLM.register(PolewiseConfig, PolewiseForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(
    PolewiseConfig, PolewiseForSequenceClassification, exist_ok=True
)
AutoModelForTimeSeriesPrediction.register(PolewiseConfig, PolewiseForForecasting, exist_ok=True)
# Where a Trainer that smooths labels looks for models whose labels are their input, to shift them,
# and pipelines for models that they know.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["polewise"] = "PolewiseForCausalLM"
MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["polewise"] = "PolewiseForSequenceClassification"
