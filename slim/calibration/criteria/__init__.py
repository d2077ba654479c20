"""The criteria: one small file each, one row in CRITERIA. Adding a criterion is adding a file and a row."""

from slim.calibration.criteria import block_influence, entropy, kl_output, kl_uniform, magnitude, variance
from slim.calibration.criteria.base import Criterion

CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        kl_output.CRITERION,
        entropy.ENTROPY,
        entropy.ENTROPY_NORM,
        kl_uniform.CRITERION,
        variance.CRITERION,
        block_influence.CRITERION,
        magnitude.CRITERION,
    )
}
