// A library with the light API and no mathematics: it knows the answer to the test model. LITE_STUB says how else it
// behaves: "version", "wrong", "echo", "integers", "throws", "throws an int", "no model", "throws in run", "dies".
#include "paddle_api.h"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <stdexcept>

namespace paddle {
namespace lite_api {
namespace {

struct Storage {
  std::vector<int64_t> shape;
  std::vector<float> values;
  PrecisionType precision = PrecisionType::kFloat;
};

std::string behaviour() {
  const char* said = std::getenv("LITE_STUB");
  return said ? said : "";
}

class Stub : public PaddlePredictor {
 public:
  explicit Stub(const MobileConfig& config)
      : echo_{static_cast<float>(config.threads()), static_cast<float>(config.power_mode()),
              static_cast<float>(config.x86_threads()), static_cast<float>(config.from_memory()),
              static_cast<float>(config.lite_model_file().size()), static_cast<float>(config.old_model().size())} {}

  std::unique_ptr<Tensor> GetInput(int) override { return std::unique_ptr<Tensor>(new Tensor(&in_)); }
  std::unique_ptr<const Tensor> GetOutput(int) const override {
    return std::unique_ptr<const Tensor>(new Tensor(const_cast<Storage*>(&out_)));
  }
  void Run() override {
    if (behaviour() == "throws in run") throw std::runtime_error("no kernel\nand a second line");
    const bool test_model = in_.shape == std::vector<int64_t>{1, 3, 4, 4};
    out_.values = test_model ? std::vector<float>{17, 0, 3, 7, 0, 23, 0, 25} : echo_;
    if (behaviour() == "wrong") out_.values[0] += 1;
    if (behaviour() == "integers") out_.precision = PrecisionType::kInt64;
    out_.shape = {1, static_cast<int64_t>(out_.values.size())};
  }
  std::shared_ptr<PaddlePredictor> Clone() override { return nullptr; }
  std::shared_ptr<PaddlePredictor> Clone(const std::vector<std::string>&) override { return nullptr; }
  std::string GetVersion() const override { return behaviour() == "version" ? "30fe065bc" : "v2.13-rc"; }
  std::vector<std::string> GetInputNames() override { return {"x"}; }
  std::vector<std::string> GetOutputNames() override { return {"y"}; }

 private:
  Storage in_, out_;
  std::vector<float> echo_;
};

Storage* storage(void* raw) { return static_cast<Storage*>(raw); }

}  // namespace

Tensor::Tensor(void* raw) : storage_(raw) {}
void Tensor::Resize(const std::vector<int64_t>& shape) { storage(storage_)->shape = shape; }
template <>
const float* Tensor::data<float>() const { return storage(storage_)->values.data(); }
template <>
float* Tensor::mutable_data<float>(TargetType) const {
  Storage* own = storage(storage_);
  own->values.resize(std::accumulate(own->shape.begin(), own->shape.end(), int64_t{1}, std::multiplies<int64_t>()));
  return own->values.data();
}
std::vector<int64_t> Tensor::shape() const { return storage(storage_)->shape; }
PrecisionType Tensor::precision() const { return storage(storage_)->precision; }

ConfigBase::ConfigBase(PowerMode mode, int threads) : threads_(threads), mode_(mode) {}
void ConfigBase::set_threads(int threads) { threads_ = threads; }
void ConfigBase::set_power_mode(PowerMode mode) { mode_ = mode; }
void ConfigBase::set_x86_math_num_threads(int threads) { x86_threads_ = threads; }
void MobileConfig::set_model_from_file(const std::string& path) { model_ = path; }
void MobileConfig::set_model_from_buffer(std::string&& model) {
  model_ = std::move(model);
  from_memory_ = true;
}

template <>
std::shared_ptr<PaddlePredictor> CreatePaddlePredictor<MobileConfig>(const MobileConfig& config) {
  if (behaviour() == "throws") throw std::runtime_error("this model is not supported");
  if (behaviour() == "throws an int") throw 7;
  if (behaviour() == "no model") return nullptr;
  if (behaviour() == "dies") std::abort();
  return std::make_shared<Stub>(config);
}

}  // namespace lite_api
}  // namespace paddle
