// Argument checks of operators. Every message names the operator and the argument, what came and what was expected:
//   append_kv: slots has dtype int64, expected int32
// All checks of an operator run before it writes anything. Failures reach Python as ValueError.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace apar::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A dimension by the name that the documentation gives it; size -1: any size.
struct Dim {
  const char* name;
  int64_t size = -1;
};

inline std::string dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Float8_e4m3fn:
      return "float8_e4m3fn";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return torch::headeronly::toString(dtype);
  }
}

inline std::string shape_text(const Tensor& tensor) {
  std::ostringstream text;
  text << "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << "]";
  return text.str();
}

// The checks of one operator, which is named once: `const Check check("append_kv");`.
class Check {
 public:
  explicit Check(const char* op) : op_(op) {}

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    std::ostringstream text;
    text << op_ << ": ";
    (text << ... << parts);
    throw std::invalid_argument(text.str());
  }

  // check.that(page_size > 0, "page_size is ", page_size, ", expected at least 1")
  template <class... Parts>
  void that(bool holds, const Parts&... parts) const {
    if (!holds) [[unlikely]]
      fail(parts...);
  }

  void dtype(const char* name, const Tensor& tensor, std::initializer_list<ScalarType> allowed) const {
    const ScalarType found = tensor.scalar_type();
    for (const ScalarType one : allowed) {
      if (one == found) return;
    }
    std::string expected;
    for (const ScalarType one : allowed) expected += (expected.empty() ? "" : ", ") + dtype_name(one);
    fail(name, " has dtype ", dtype_name(found), ", expected ", allowed.size() > 1 ? "one of " : "", expected);
  }

  void same_dtype(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) const {
    if (tensor.scalar_type() == other.scalar_type()) return;
    fail(name, " has dtype ", dtype_name(tensor.scalar_type()), ", expected ", dtype_name(other.scalar_type()), " as ",
         other_name, " has");
  }

  void shape(const char* name, const Tensor& tensor, std::initializer_list<Dim> expected) const {
    bool matches = tensor.dim() == static_cast<int64_t>(expected.size());
    int64_t i = 0;
    for (const Dim& dim : expected) {
      matches = matches && (dim.size < 0 || tensor.size(i) == dim.size);
      ++i;
    }
    if (matches) return;
    std::ostringstream text;
    const char* separator = "";
    for (const Dim& dim : expected) {
      text << separator << dim.name;
      if (dim.size >= 0) text << "=" << dim.size;
      separator = ", ";
    }
    fail(name, " has shape ", shape_text(tensor), ", expected [", text.str(), "]");
  }

  void contiguous(const char* name, const Tensor& tensor) const {
    that(tensor.is_contiguous(), name, " is not contiguous, expected a contiguous tensor");
  }

  // Outer dimensions may have any stride, as those of a transposed view.
  void contiguous_last_dim(const char* name, const Tensor& tensor) const {
    const int64_t last = tensor.dim() - 1;
    if (tensor.size(last) <= 1 || tensor.numel() == 0 || tensor.stride(last) == 1) return;
    fail(name, " has stride ", tensor.stride(last), " in its last dimension, expected 1");
  }

  void same_device(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) const {
    if (tensor.device() == other.device()) return;
    fail(name, " is on device ", device_text(tensor), ", expected ", device_text(other), " as ", other_name, " is");
  }

  // int32, contiguous, of the given shape, beside `other`: what every index tensor of an operator is.
  void index(const char* name, const Tensor& tensor, std::initializer_list<Dim> expected, const char* other_name,
             const Tensor& other) const {
    same_device(name, tensor, other_name, other);
    dtype(name, tensor, {ScalarType::Int});
    shape(name, tensor, expected);
    contiguous(name, tensor);
  }

 private:
  static std::string device_text(const Tensor& tensor) {
    if (tensor.is_cpu()) return "cpu";
    return (tensor.is_cuda() ? "cuda:" : "other:") + std::to_string(tensor.get_device_index());
  }

  const char* op_;
};

}  // namespace apar::ops
