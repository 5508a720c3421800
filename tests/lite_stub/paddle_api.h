// The light API of a library that the tests make, as a release's header would declare it: with fields, some of which
// differ between versions. Macros choose: STUB_OLD, STUB_NEW, STUB_STRANGE.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace paddle {
namespace lite_api {

enum PowerMode : unsigned { LITE_POWER_HIGH = 0, LITE_POWER_NO_BIND = 3 };
enum class TargetType : int { kHost = 1 };
enum class PrecisionType : int { kFloat = 1, kInt64 = 7 };

struct Tensor {
  explicit Tensor(void* storage);
  void Resize(const std::vector<int64_t>& shape);
  template <typename T>
  const T* data() const;
  template <typename T>
  T* mutable_data(TargetType target = TargetType::kHost) const;
  std::vector<int64_t> shape() const;
  PrecisionType precision() const;

 private:
  void* storage_;
};

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
  virtual ~PaddlePredictor() = default;
};

class ConfigBase {
 public:
  explicit ConfigBase(PowerMode mode = LITE_POWER_NO_BIND, int threads = 1);
  void set_threads(int threads);
  void set_power_mode(PowerMode mode);
  void set_x86_math_num_threads(int threads);
  int threads() const { return threads_; }
  PowerMode power_mode() const { return mode_; }
  int x86_threads() const { return x86_threads_; }

 private:
  std::string folder_;
  int threads_;
  PowerMode mode_;
  std::string cache_;
  std::vector<std::string> devices_;
  int x86_threads_ = 1;
#ifdef STUB_NEW
  std::string more_;
  std::map<int, std::shared_ptr<void>> still_more_;
#endif
};

class MobileConfig : public ConfigBase {
 public:
  void set_model_from_file(const std::string& path);
  void set_model_from_buffer(std::string&& model);
  const std::string& lite_model_file() const { return model_; }
  bool from_memory() const { return from_memory_; }
  const std::string& old_model() const { return old_model_; }

 private:
  bool from_memory_ = false;
#ifdef STUB_STRANGE
  std::string something_else_;
#endif
  int precision_mode_ = 0;
  std::string model_;
#ifndef STUB_OLD
  const char* data_ = nullptr;
  std::size_t bytes_ = 0;
#endif
  std::string old_model_, old_parameters_;
};

template <typename Config>
std::shared_ptr<PaddlePredictor> CreatePaddlePredictor(const Config& config);

}  // namespace lite_api
}  // namespace paddle
