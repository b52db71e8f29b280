import itertools

import numpy as np

from trimtab.planners.group_fitting import non_negative_fit


def test_no_subset_of_columns_fits_better_without_a_negative_coefficient() -> None:
    generator = np.random.default_rng(0)
    for _ in range(60):
        num_columns = int(generator.integers(1, 7))
        scales = 10.0 ** generator.integers(-6, 6, size=num_columns)
        columns = np.abs(generator.normal(size=(int(generator.integers(3, 20)), num_columns)))
        columns = columns * scales
        if num_columns > 2:
            columns[:, 0] = columns[:, 1] * 3  # two columns that cannot be told apart
        target = generator.normal(size=len(columns)) + 1
        found = non_negative_fit(columns, target)
        assert (found >= 0).all()
        error = float(np.sum((columns @ found - target) ** 2))
        for number in range(1, num_columns + 1):
            for subset in itertools.combinations(range(num_columns), number):
                chosen = columns[:, subset] / scales[list(subset)]
                solution = np.linalg.lstsq(chosen, target)[0]
                if (solution >= 0).all():
                    least = float(np.sum((chosen @ solution - target) ** 2))
                    assert error <= least * (1 + 1e-9)
