"""A prompt that was found here, put into a program of DSPy."""

from typing import Any

from hfdataopt.errors import DataError, MissingDependencyError, OptionError
from hfdataopt.prompting.apply import ApplyPrompt
from hfdataopt.prompting.candidate import Candidate
from hfdataopt.prompting.result import PromptResult


def apply_to_dspy(prompt: "PromptResult | Candidate | ApplyPrompt", program: Any, predictor: str | None = None) -> Any:
    """A copy of the program whose predictor has the instruction and the exemplars as demonstrations.

    Args:
        program: any ``dspy.Module``; the predictor must have one input and one output field.
        predictor: its name, as in ``program.named_predictors()``; None where there is only one.

    Raises:
        OptionError: there is no such predictor, or several and none was named. DataError: it has other fields.
    """
    try:
        import dspy
    except ImportError as error:
        raise MissingDependencyError("apply_to_dspy needs DSPy: pip install 'hfdataopt[dspy]'") from error
    found = prompt.prompt if isinstance(prompt, PromptResult) else prompt
    changed = program.deepcopy()
    predictors = dict(changed.named_predictors())
    if predictor is None and len(predictors) != 1:
        raise OptionError(f"apply_to_dspy: name one predictor of the program: {', '.join(predictors)}")
    if predictor is not None and predictor not in predictors:
        raise OptionError(f"apply_to_dspy: no predictor {predictor!r}; there are: {', '.join(predictors)}")
    chosen = next(iter(predictors.values())) if predictor is None else predictors[predictor]
    inputs, outputs = list(chosen.signature.input_fields), list(chosen.signature.output_fields)
    if found.exemplars and (len(inputs) != 1 or len(outputs) != 1):
        raise DataError(
            f"apply_to_dspy: exemplars are an input and an output, and the predictor has {', '.join(inputs)} -> "
            f"{', '.join(outputs)}; give a prompt without exemplars"
        )
    if found.instruction:
        chosen.signature = chosen.signature.with_instructions(found.instruction)
    chosen.demos = [
        dspy.Example(**{inputs[0]: shown.prompt, outputs[0]: shown.completion}) for shown in found.exemplars
    ]
    return changed
