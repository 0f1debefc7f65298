from hvpspec.operators.hessian import HessianOperator
class GGNOperator(HessianOperator):
    matrix="ggn"
class EmpiricalFisherOperator(HessianOperator):
    matrix="empirical-fisher"
class ResidualOperator(HessianOperator):
    matrix="residual"
