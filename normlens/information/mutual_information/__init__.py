"""Mutual information of two variables in nats: one estimator per file, each an Estimate.

Imported eagerly: function and module share their name, so a lazy index would hand out the module instead of it.
"""

from normlens.information.mutual_information.binned import binned as binned
from normlens.information.mutual_information.binned_matrix import binned_matrix as binned_matrix
from normlens.information.mutual_information.discrete import discrete as discrete
from normlens.information.mutual_information.gated_correlation import gated_correlation as gated_correlation
from normlens.information.mutual_information.gaussian_copula import gaussian_copula as gaussian_copula
from normlens.information.mutual_information.gaussian_copula_matrix import (
    gaussian_copula_matrix as gaussian_copula_matrix,
)
from normlens.information.mutual_information.hurdle import hurdle as hurdle
from normlens.information.mutual_information.interval import Interval as Interval
from normlens.information.mutual_information.interval import interval as interval
from normlens.information.mutual_information.ksg import ksg as ksg
from normlens.information.mutual_information.matrix import InformationMatrix as InformationMatrix
from normlens.information.mutual_information.permutation_null import PermutationNull as PermutationNull
from normlens.information.mutual_information.permutation_null import permutation_null as permutation_null
from normlens.information.mutual_information.table import table as table
