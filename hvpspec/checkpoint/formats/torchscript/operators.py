"""What a TorchScript program may use without being trusted.

The lists name what ordinary networks are made of: the operators behind torch's functions, torch.nn and the methods of
tensors, which compute with tensors and bring their own checks of shapes and indices. An operator that is on no list is
refused. Left out on purpose:

- what reaches files, other machines, or the settings of the process (from_file, save, manual_seed, set_grad_enabled);
- what makes tensors of unknown content, or looks at memory in another way (empty, resize_, set_, as_strided);
- kernels that other operators call with arguments they have checked (_softmax, native_batch_norm, *_backward,
  _unsafe_*), sparse, quantised and nested tensors: torch reads or writes out of bounds for some of their arguments;
- what random arguments were seen to crash in torch 2.13: embedding_bag, pdist, gcd, nanmedian, eigenvalues, ctc_loss.

A few that no network can do without were seen to end the process as well, for sizes that do not fit each other (lstm,
max_pool1d, conv1d, reflection_pad2d, repeat_interleave, an integer % 0). They are run when the loss is, not on loading,
and first in a process of their own (`first_run.py`).
"""

from __future__ import annotations

_OPERATORS = """
Bool Float FloatImplicit Int IntImplicit ScalarImplicit __and__ __contains__ __derive_index __getitem__ __is__
__isnot__ __not__ __or__ __range_length __xor__ _cast_Double _cast_Float _cast_Half _cast_Int _cast_Long _convolution
_convolution_mode _set_item _shape_as_tensor _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa
_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d abs abs_ absolute absolute_ acos acos_
acosh acosh_ adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d add add_ addbmm addbmm_ addcdiv addcdiv_ addcmul addcmul_ addmm addmm_ addmv addmv_ addr adjoint
affine_grid_generator all alpha_dropout alpha_dropout_ amax amin aminmax any append arange arccos arccosh arcsin
arcsinh arctan arctan2 arctanh argmax argmin argsort argwhere asin asin_ asinh asinh_ atan atan2 atan2_ atan_ atanh
atanh_ atleast_1d atleast_2d atleast_3d avg_pool1d avg_pool2d avg_pool3d baddbmm baddbmm_ batch_norm bernoulli
bernoulli_ bilinear binary_cross_entropy binary_cross_entropy_with_logits bitwise_and bitwise_and_ bitwise_left_shift
bitwise_not bitwise_not_ bitwise_or bitwise_or_ bitwise_right_shift bitwise_xor block_diag bmm broadcast_shapes
broadcast_tensors broadcast_to bucketize cat cdist ceil ceil_ celu celu_ chalf channel_shuffle cholesky chunk clamp
clamp_ clamp_max clamp_max_ clamp_min clamp_min_ clear clip clip_ clone col2im column_stack complex concat concatenate
conj conj_physical constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
copy_ copysign corrcoef cos cos_ cosh cosh_ cosine_embedding_loss cosine_similarity count count_nonzero cov cpu cross
cross_entropy_loss cummax cummin cumprod cumprod_ cumsum cumsum_ cumulative_trapezoid deg2rad degrees dense_dim det
detach device diag diag_embed diagflat diagonal diagonal_scatter dict diff digamma dim div div_ divide divide_ divmod
dot dropout dropout_ dsplit dstack einsum element_size elu elu_ embedding embedding_renorm_ endswith eq eq_ erf erf_
erfc erfc_ erfinv erfinv_ exp exp2 exp2_ exp_ expand expand_as expm1 expm1_ extend eye fabs feature_alpha_dropout
feature_alpha_dropout_ feature_dropout feature_dropout_ fft_fft fft_fft2 fft_fftn fft_fftshift fft_ifft fft_ifft2
fft_ifftn fft_ifftshift fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn fill fill_ fill_diagonal_ find fix
fix_ flatten flip fliplr flipud float_power floor floor_ floor_divide floor_divide_ floordiv fmax fmin fmod fmod_
format frac frac_ full full_like gather ge ge_ gelu gelu_ get glu greater greater_ greater_equal greater_equal_
grid_sampler group_norm gru gru_cell gt gt_ hamming_window hann_window hardshrink hardsigmoid hardsigmoid_ hardswish
hardswish_ hardtanh hardtanh_ heaviside hinge_embedding_loss hsplit hstack huber_loss hypot hypot_ i0 im2col imag index
index_add index_add_ index_copy index_copy_ index_fill index_fill_ index_put index_put_ index_select inner insert
instance_norm inverse is_autocast_cpu_enabled is_autocast_enabled is_complex is_contiguous is_floating_point
is_grad_enabled is_nonzero is_scripting is_signed isclose isfinite isin isinf isnan isneginf isposinf isreal item items
join keys kl_div kron kthvalue l1_loss layer_norm lcm ldexp le le_ leaky_relu leaky_relu_ len lerp lerp_ less less_
less_equal less_equal_ lgamma lgamma_ linalg_cholesky linalg_cross linalg_det linalg_diagonal linalg_inv
linalg_matrix_exp linalg_matrix_norm linalg_norm linalg_qr linalg_slogdet linalg_solve linalg_solve_triangular
linalg_vector_norm linear linspace list log log10 log10_ log1p log1p_ log2 log2_ log_ log_sigmoid log_softmax logaddexp
logaddexp2 logcumsumexp logdet logical_and logical_and_ logical_not logical_not_ logical_or logical_or_ logical_xor
logical_xor_ logit logit_ logspace logsumexp lower lstm lstm_cell lstrip lt lt_ mH mT margin_ranking_loss masked_fill
masked_fill_ masked_scatter masked_scatter_ masked_select matmul matrix_H matrix_exp max max_pool1d
max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices maximum mean median
meshgrid min minimum mish mish_ mm mode moveaxis movedim mse_loss msort mul mul_ multi_margin_loss
multilabel_margin_loss multiply multiply_ mv nan_to_num nan_to_num_ nanmean nanquantile nansum narrow ne ne_ neg neg_
negative negative_ new_full new_ones new_zeros nll_loss_nd nonzero nonzero_static norm norm_except_dim normal normal_
not_equal not_equal_ numel one_hot ones ones_like outer pad pad_sequence pairwise_distance permute pixel_shuffle
pixel_unshuffle poisson_nll_loss polar pop popitem positive pow pow_ prelu prod quantile rad2deg rad2deg_ radians rand
rand_like randint randint_like randn randn_like randperm ravel real reciprocal reciprocal_ reflection_pad1d
reflection_pad2d reflection_pad3d relu relu6 relu6_ relu_ remainder remainder_ remove renorm repeat repeat_interleave
replace replication_pad1d replication_pad2d replication_pad3d reshape reshape_as resolve_conj resolve_neg reverse
rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell roll rot90 round round_ row_stack rrelu rrelu_ rsqrt rsqrt_
rstrip rsub scalar_tensor scaled_dot_product_attention scatter scatter_ scatter_add scatter_add_ scatter_reduce
scatter_reduce_ searchsorted select select_scatter selu selu_ setdefault sgn sigmoid sigmoid_ sign sign_ silu silu_ sin
sin_ sinc sinh sinh_ size slice slice_scatter slogdet smooth_l1_loss soft_margin_loss softmax softplus softshrink sort
sorted special_entr special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expit special_expm1
special_gammaln special_log1p special_log_ndtr special_log_softmax special_logit special_logsumexp special_ndtr
special_ndtri special_psi special_sinc special_softmax special_xlog1py special_xlogy split split_with_sizes sqrt sqrt_
square square_ squeeze squeeze_ stack startswith std std_mean str stride strip sub sub_ subtract subtract_ sum
sum_to_size swapaxes swapaxes_ swapdims swapdims_ t t_ take take_along_dim tan tan_ tanh tanh_ tensor tensor_split
tensordot threshold threshold_ tile to topk trace transpose transpose_ trapezoid trapz tril tril_ tril_indices
triplet_margin_loss triu triu_ triu_indices true_divide true_divide_ trunc trunc_ type_as unbind unflatten unfold
uniform_ unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_ update upper upsample_bicubic2d
upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
values var var_mean vdot view view_as view_as_complex view_as_real vsplit vstack warn where xlogy xlogy_ zero_ zeros
zeros_like
"""

OPERATORS = frozenset(_OPERATORS.split())
"""Of torch: torch.NAME(…), as aten::NAME."""

PROPERTIES = frozenset((
    "NumToTensor", "RaiseException", "abs", "data", "device", "dtype", "index", "is_cpu", "is_cuda", "is_nested",
    "layout", "max", "min", "requires_grad", "rangelist", "tolist", "type",
))  # fmt: skip
"""Of tensors and numbers: ops.prim.NAME(…)."""

BUILTINS = frozenset((
    "annotate", "bool", "complex", "float", "getattr", "inf", "infj", "int", "nan", "nanj", "range", "str",
    "unchecked_cast", "uninitialized",
))  # fmt: skip
"""Names that torch's parser gives a meaning."""

SCALAR_TYPES = frozenset(("Device", "NoneType", "Tensor", "bool", "complex", "float", "int", "number", "str"))
"""Types of which torch looks at a value only after a test of its type."""

TYPES = SCALAR_TYPES | {"Dict", "Final", "List", "Optional", "Tuple", "Union"}

REACHING_OPERATORS = frozenset(("from_file", "save", "rpc_async", "rpc_sync", "rpc_remote", "classes"))
"""Those with a message of their own."""
