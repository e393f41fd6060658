// Group normalization and ReLU in one operator, forward and backward, for channels-last maps.
//
// torch has them apart: ReLU reads and writes every map once more in both directions, and the
// backward pass of its group normalization takes several passes over channels-last maps. Here each
// direction reads a map twice, and the second time it comes from the cache where an image fits.
//
// An image is the unit of work, so that no number depends on how many threads there are. Sums run in
// float over blocks of rows and in double over the blocks. Values are shifted by the image's first
// pixel before they are squared, so that a mean far from zero costs no digits.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;

constexpr int64_t kRows = 64;  // of a block that is summed in float
constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

struct Shape {
  int64_t images, channels, rows, groups;  // a row is a pixel's channels

  Shape(const Tensor& x, int64_t groups)
      : images(x.size(0)), channels(x.size(1)), rows(x.size(2) * x.size(3)), groups(groups) {}

  int64_t group_size() const { return channels / groups; }
  double values() const { return static_cast<double>(rows * group_size()); }  // of a group
};

// Adds up two quantities of each channel over all rows; `add(row, sums, more)` adds those of a row.
template <typename Add>
void sum_rows(const Shape& shape, std::vector<float>& block, double* sums, double* more, Add add) {
  const int64_t channels = shape.channels;
  float* const a = block.data();
  float* const b = a + channels;
  std::fill(sums, sums + channels, 0.0);
  std::fill(more, more + channels, 0.0);
  for (int64_t first = 0; first < shape.rows; first += kRows) {
    std::fill(a, a + 2 * channels, 0.0f);
    const int64_t last = std::min(shape.rows, first + kRows);
    for (int64_t row = first; row < last; ++row) add(row, a, b);
    for (int64_t c = 0; c < channels; ++c) {
      sums[c] += a[c];
      more[c] += b[c];
    }
  }
}

// (x - center) * scale + bias is the normalized x: center and scale of each channel of an image.
void center_and_scale(const Shape& shape, const float* mean, const float* rstd, const float* weight,
                      float* center, float* scale) {
  for (int64_t c = 0; c < shape.channels; ++c) {
    const int64_t group = c / shape.group_size();
    center[c] = mean[group];
    scale[c] = rstd[group] * weight[c];
  }
}

template <typename T>
void forward_image(const Shape& shape, const T* x, const float* weight, const float* bias,
                   double eps, T* y, float* mean, float* rstd) {
  const int64_t channels = shape.channels;
  std::vector<float> block(2 * channels), lines(3 * channels);
  std::vector<double> sums(2 * channels);
  float* const origin = lines.data();
  float* const center = origin + channels;
  float* const scale = center + channels;
  for (int64_t c = 0; c < channels; ++c) origin[c] = static_cast<float>(x[c]);
  double* const squares = sums.data() + channels;
  sum_rows(shape, block, sums.data(), squares, [=](int64_t row, float* sum, float* square) {
    const T* const values = x + row * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const float value = static_cast<float>(values[c]) - origin[c];
      sum[c] += value;
      square[c] += value * value;
    }
  });
  const double rows = static_cast<double>(shape.rows);
  for (int64_t group = 0; group < shape.groups; ++group) {
    const int64_t first = group * shape.group_size(), last = first + shape.group_size();
    double total = 0, deviation = 0;
    for (int64_t c = first; c < last; ++c) total += sums[c] + rows * origin[c];
    const double middle = total / shape.values();
    for (int64_t c = first; c < last; ++c) {
      const double off = origin[c] - middle;
      deviation += squares[c] + 2 * off * sums[c] + rows * off * off;
    }
    mean[group] = static_cast<float>(middle);
    rstd[group] = static_cast<float>(1 / std::sqrt(std::max(0.0, deviation / shape.values()) + eps));
  }
  center_and_scale(shape, mean, rstd, weight, center, scale);
  for (int64_t row = 0; row < shape.rows; ++row) {
    const T* const values = x + row * channels;
    T* const results = y + row * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const float value = (static_cast<float>(values[c]) - center[c]) * scale[c] + bias[c];
      results[c] = static_cast<T>(value < 0 ? 0.0f : value);  // NaN stays NaN
    }
  }
}

// Also returns, of each channel, the sums over the image that the parameters' gradients consist of:
// `passed` of the gradient behind the ReLU, `along` of it times x - mean.
template <typename T>
void backward_image(const Shape& shape, const T* grad, const T* x, const float* mean,
                    const float* rstd, const float* weight, const float* bias, T* grad_x,
                    double* passed, double* along) {
  const int64_t channels = shape.channels;
  std::vector<float> block(2 * channels), lines(4 * channels);
  float* const center = lines.data();
  float* const scale = center + channels;
  float* const slope = scale + channels;
  float* const level = slope + channels;
  center_and_scale(shape, mean, rstd, weight, center, scale);
  sum_rows(shape, block, passed, along, [=](int64_t row, float* sum, float* product) {
    const T* const values = x + row * channels;
    const T* const grads = grad + row * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const float off = static_cast<float>(values[c]) - center[c];
      const float through = off * scale[c] + bias[c] <= 0 ? 0.0f : static_cast<float>(grads[c]);
      sum[c] += through;
      product[c] += through * off;
    }
  });
  for (int64_t group = 0; group < shape.groups; ++group) {
    const int64_t first = group * shape.group_size(), last = first + shape.group_size();
    double sum = 0, product = 0;
    for (int64_t c = first; c < last; ++c) {
      sum += passed[c] * weight[c];
      product += along[c] * weight[c];
    }
    const double inverse = rstd[group];
    for (int64_t c = first; c < last; ++c) {
      slope[c] = static_cast<float>(-product * inverse * inverse * inverse / shape.values());
      level[c] = static_cast<float>(-sum * inverse / shape.values());
    }
  }
  for (int64_t row = 0; row < shape.rows; ++row) {
    const T* const values = x + row * channels;
    const T* const grads = grad + row * channels;
    T* const results = grad_x + row * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const float off = static_cast<float>(values[c]) - center[c];
      const float through = off * scale[c] + bias[c] <= 0 ? 0.0f : static_cast<float>(grads[c]);
      results[c] = static_cast<T>(through * scale[c] + off * slope[c] + level[c]);
    }
  }
}

template <typename Work>
void of_dtype(const Tensor& x, Work work) {
  if (x.scalar_type() == at::kBFloat16) {
    work(c10::BFloat16());
  } else {
    TORCH_CHECK(x.scalar_type() == at::kFloat, "maps must be float32 or bfloat16");
    work(float());
  }
}

// Returns relu(group_norm(x)), and the mean and 1/standard deviation of each image's groups.
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                           int64_t groups, double eps) {
  TORCH_CHECK(x.is_contiguous(kChannelsLast), "maps must be channels last");
  const Shape shape(x, groups);
  Tensor y = at::empty_like(x);
  Tensor mean = at::empty({shape.images, groups}, weight.options());
  Tensor rstd = at::empty_like(mean);
  of_dtype(x, [&](auto value) {
    using T = decltype(value);
    const T* const from = x.const_data_ptr<T>();
    T* const to = y.mutable_data_ptr<T>();
    const float* const scales = weight.const_data_ptr<float>();
    const float* const shifts = bias.const_data_ptr<float>();
    float* const means = mean.mutable_data_ptr<float>();
    float* const rstds = rstd.mutable_data_ptr<float>();
    at::parallel_for(0, shape.images, 1, [&](int64_t first, int64_t last) {
      for (int64_t image = first; image < last; ++image) {
        const int64_t at = image * shape.rows * shape.channels;
        forward_image(shape, from + at, scales, shifts, eps, to + at, means + image * groups,
                      rstds + image * groups);
      }
    });
  });
  return {y, mean, rstd};
}

// Returns the gradients of x, weight and bias.
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& mean,
                                            const Tensor& rstd, const Tensor& weight,
                                            const Tensor& bias) {
  const Shape shape(x, mean.size(1));
  const Tensor grad_y = grad.to(x.scalar_type()).contiguous(kChannelsLast);
  Tensor grad_x = at::empty_like(x);
  Tensor grad_weight = at::empty_like(weight), grad_bias = at::empty_like(bias);
  std::vector<double> sums(2 * shape.images * shape.channels);
  const float* const means = mean.const_data_ptr<float>();
  const float* const rstds = rstd.const_data_ptr<float>();
  of_dtype(x, [&](auto value) {
    using T = decltype(value);
    const T* const grads = grad_y.const_data_ptr<T>();
    const T* const from = x.const_data_ptr<T>();
    T* const to = grad_x.mutable_data_ptr<T>();
    const float* const scales = weight.const_data_ptr<float>();
    const float* const shifts = bias.const_data_ptr<float>();
    at::parallel_for(0, shape.images, 1, [&](int64_t first, int64_t last) {
      for (int64_t image = first; image < last; ++image) {
        const int64_t at = image * shape.rows * shape.channels;
        double* const passed = sums.data() + 2 * image * shape.channels;
        backward_image(shape, grads + at, from + at, means + image * shape.groups,
                       rstds + image * shape.groups, scales, shifts, to + at, passed,
                       passed + shape.channels);
      }
    });
  });
  float* const of_weight = grad_weight.mutable_data_ptr<float>();
  float* const of_bias = grad_bias.mutable_data_ptr<float>();
  for (int64_t c = 0; c < shape.channels; ++c) {
    double slope = 0, level = 0;
    for (int64_t image = 0; image < shape.images; ++image) {
      const double* const passed = sums.data() + 2 * image * shape.channels;
      level += passed[c];
      slope += passed[shape.channels + c] * rstds[image * shape.groups + c / shape.group_size()];
    }
    of_weight[c] = static_cast<float>(slope);
    of_bias[c] = static_cast<float>(level);
  }
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace

TORCH_LIBRARY(bitzoo, library) {
  library.def(
      "group_norm_relu(Tensor x, Tensor weight, Tensor bias, int groups, float eps)"
      " -> (Tensor, Tensor, Tensor)",
      &forward);
  library.def(
      "group_norm_relu_backward(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor weight,"
      " Tensor bias) -> (Tensor, Tensor, Tensor)",
      &backward);
}
