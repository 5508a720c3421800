// A C interface over Paddle Lite's light API, for ctypes. Built by `edge-ocr lite build`; C++14, no library but Paddle
// Lite's own.
//
// With -DEDGE_OCR_LITE_HEADERS it is compiled against the headers of a release archive. Without, against the few
// declarations below: a release of the x86 wheel has no headers.
//
// No exception leaves a function of the interface: it returns 0, or 1 and keeps a message for `edge_ocr_lite_error`.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef EDGE_OCR_LITE_HEADERS
#include "paddle_api.h"
#else

// What is used of the light API, as the libraries of version 2.13 export it. Names and types make the symbols, the order
// of virtual functions makes the table; bodies and fields are the library's own affair.
namespace paddle {
namespace lite_api {

enum PowerMode : unsigned { LITE_POWER_NO_BIND = 3 };
enum class TargetType : int { kHost = 1 };
enum class PrecisionType : int { kFloat = 1 };

struct Tensor {
  void Resize(const std::vector<int64_t>& shape);
  template <typename T>
  const T* data() const;
  template <typename T>
  T* mutable_data(TargetType target = TargetType::kHost) const;
  std::vector<int64_t> shape() const;
  PrecisionType precision() const;

 private:
  void* tensor_;
};

// Owned through the shared pointer that the library makes, which knows how to destroy it; so the table may end here.
class PaddlePredictor {
 public:
  virtual std::unique_ptr<Tensor> GetInput(int index) = 0;
  virtual std::unique_ptr<const Tensor> GetOutput(int index) const = 0;
  virtual void Run() = 0;
  virtual std::shared_ptr<PaddlePredictor> Clone() = 0;
  virtual std::shared_ptr<PaddlePredictor> Clone(const std::vector<std::string>& variables) = 0;
  virtual std::string GetVersion() const = 0;
  virtual std::vector<std::string> GetInputNames() = 0;
  virtual std::vector<std::string> GetOutputNames() = 0;

 protected:
  ~PaddlePredictor() = default;
};

class ConfigBase {
 public:
  explicit ConfigBase(PowerMode mode = LITE_POWER_NO_BIND, int threads = 1);
  void set_threads(int threads);
  void set_power_mode(PowerMode mode);
  void set_x86_math_num_threads(int threads);
};

class MobileConfig : public ConfigBase {
 public:
  void set_model_from_file(const std::string& path);
  void set_model_from_buffer(std::string&& model);
};

template <typename Config>
std::shared_ptr<PaddlePredictor> CreatePaddlePredictor(const Config& config);

}  // namespace lite_api
}  // namespace paddle
#endif

#define INTERFACE extern "C" __attribute__((visibility("default")))

namespace {

using paddle::lite_api::MobileConfig;
using paddle::lite_api::PaddlePredictor;
using paddle::lite_api::PowerMode;
using paddle::lite_api::PrecisionType;

#ifdef EDGE_OCR_LITE_HEADERS

class Config {
 public:
  MobileConfig& get() { return config_; }
  const std::string& model() const { return config_.lite_model_file(); }

 private:
  MobileConfig config_;
};

#else

using paddle::lite_api::ConfigBase;

// What MobileConfig adds to ConfigBase; its constructor is the header's, so that it has to be done here. Versions without
// `data` and `bytes` have `old_model` there: nought in all of its parts, it is an empty string to who reads it.
struct Added {
  bool from_memory = false;
  int precision_mode = 0;
  std::string model;
  const char* data = nullptr;
  std::size_t bytes = 0;
  std::string old_model, old_parameters;
};

constexpr std::size_t kRoom = 4096;  // ConfigBase takes 528 bytes in version 2.13

// A MobileConfig in a room that is larger than any version's. ConfigBase grows from one version to the next, and its
// constructor is in the library: what it writes tells where MobileConfig's own part begins.
class Config {
 public:
  Config() {
    std::memset(room_, 0, kRoom);  // a version may keep something of its own where Added ends or does not begin
    new (room_) ConfigBase();
    added_ = new (room_ + base_bytes()) Added();
  }
  // ConfigBase's destructor is the header's too; nothing here gives its fields anything to free.
  ~Config() { added_->~Added(); }
  Config(const Config&) = delete;
  Config& operator=(const Config&) = delete;

  MobileConfig& get() { return *reinterpret_cast<MobileConfig*>(room_); }
  const std::string& model() const { return added_->model; }

 private:
  static std::size_t base_bytes() {
    static const std::size_t bytes = measure();
    return bytes;
  }

  static std::size_t measure() {
    alignas(16) unsigned char low[kRoom], high[kRoom];
    std::memset(low, 0x55, kRoom);
    std::memset(high, 0xAA, kRoom);
    new (low) ConfigBase();
    new (high) ConfigBase();
    std::size_t end = kRoom;
    while (end > 0 && low[end - 1] == 0x55 && high[end - 1] == 0xAA) --end;
    end = (end + alignof(Added) - 1) / alignof(Added) * alignof(Added);
    if (end == 0 || end + sizeof(Added) > kRoom) throw std::runtime_error("its configuration has an unknown size");
    return end;
  }

  alignas(16) unsigned char room_[kRoom];
  Added* added_;
};

#endif

thread_local std::string last_error;

template <typename Work>
int guarded(const Work& work) {
  try {
    work();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "an exception of unknown kind";
  }
  return 1;
}

void require(bool holds, const char* message) {
  if (!holds) throw std::runtime_error(message);
}

// The library must write the model where it is looked for: else nothing else of the configuration can be trusted.
void check_layout() {
  const std::string word = "a model's bytes, longer than a string keeps in itself";
  Config config;
  config.get().set_model_from_buffer(std::string(word));
  require(config.model() == word, "it lays out its configuration in an unknown way");
}

}  // namespace

struct EdgeOcrModel {
  std::shared_ptr<PaddlePredictor> predictor;
  std::size_t inputs, outputs;
};

// Number of this interface; changes with any of the functions.
INTERFACE int edge_ocr_lite_interface() { return 1; }

// The calling thread's last message.
INTERFACE const char* edge_ocr_lite_error() { return last_error.c_str(); }

// Loads a model: `bytes` bytes at `model`, or when `bytes` is 0 the file that `model` names.
INTERFACE int edge_ocr_lite_load(const char* model, std::size_t bytes, int threads, int power_mode,
                                 EdgeOcrModel** loaded) {
  return guarded([&] {
    check_layout();
    Config config;
    if (bytes > 0) {
      config.get().set_model_from_buffer(std::string(model, bytes));
    } else {
      config.get().set_model_from_file(model);
    }
    config.get().set_power_mode(static_cast<PowerMode>(power_mode));
    config.get().set_threads(threads);
    config.get().set_x86_math_num_threads(threads);
    auto predictor = paddle::lite_api::CreatePaddlePredictor<MobileConfig>(config.get());
    require(predictor != nullptr, "it makes no predictor of the model");
    const std::size_t inputs = predictor->GetInputNames().size(), outputs = predictor->GetOutputNames().size();
    *loaded = new EdgeOcrModel{std::move(predictor), inputs, outputs};
  });
}

// Writes the library's version, ended by a zero, into `room` bytes.
INTERFACE int edge_ocr_lite_version(const EdgeOcrModel* model, char* text, std::size_t room) {
  return guarded([&] {
    const std::string version = model->predictor->GetVersion();
    require(version.size() < room, "its version is longer than expected");
    std::memcpy(text, version.c_str(), version.size() + 1);
  });
}

// Copies an input in: float32, C-contiguous, of `axes` axes.
INTERFACE int edge_ocr_lite_input(EdgeOcrModel* model, int index, const float* data, const int64_t* shape, int axes) {
  return guarded([&] {
    // The library ends the process over an index that is not there.
    require(index >= 0 && static_cast<std::size_t>(index) < model->inputs, "the model has no such input");
    auto tensor = model->predictor->GetInput(index);
    std::size_t count = 1;
    for (int axis = 0; axis < axes; ++axis) count *= static_cast<std::size_t>(shape[axis]);
    tensor->Resize(std::vector<int64_t>(shape, shape + axes));
    std::memcpy(tensor->mutable_data<float>(), data, count * sizeof(float));
  });
}

INTERFACE int edge_ocr_lite_run(EdgeOcrModel* model) {
  return guarded([&] { model->predictor->Run(); });
}

// Tells where an output is, and its shape; `axes` holds the room in `shape` and becomes what is used of it. The memory
// is the model's: until its next run, and no longer than itself.
INTERFACE int edge_ocr_lite_output(const EdgeOcrModel* model, int index, const float** data, int64_t* shape,
                                   int* axes) {
  return guarded([&] {
    require(index >= 0 && static_cast<std::size_t>(index) < model->outputs, "the model has no such output");
    const auto tensor = model->predictor->GetOutput(index);
    require(tensor->precision() == PrecisionType::kFloat, "the output is not float32");
    const std::vector<int64_t> sides = tensor->shape();
    require(sides.size() <= static_cast<std::size_t>(*axes), "the output has too many axes");
    for (std::size_t axis = 0; axis < sides.size(); ++axis) shape[axis] = sides[axis];
    *axes = static_cast<int>(sides.size());
    *data = tensor->data<float>();
  });
}

// Gives a model back; a null pointer is no matter.
INTERFACE void edge_ocr_lite_close(EdgeOcrModel* model) {
  guarded([&] { delete model; });
}
