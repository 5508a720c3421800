// Loads a library and the binding as Python does, and runs the test model: for processors that have no Python here.
//
//   driver LIBRARY BINDING MODEL      prints the library's version and the eight numbers of the output
#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>

template <typename Function>
Function* find(void* binding, const char* name) {
  return reinterpret_cast<Function*>(dlsym(binding, name));
}

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_LAZY | RTLD_LOCAL);
  void* binding = library ? dlopen(arguments[2], RTLD_NOW | RTLD_LOCAL) : nullptr;
  if (!binding) return std::fprintf(stderr, "%s\n", dlerror()), 1;
  void* model = nullptr;
  float x[48];
  for (int index = 0; index < 48; ++index) x[index] = static_cast<float>(index % 7 - 3);
  const int64_t shape[] = {1, 3, 4, 4};
  const float* y = nullptr;
  int64_t sides[8];
  int axes = 8;
  char version[64];
  const bool failed =
      find<int(const char*, std::size_t, int, int, void**)>(binding, "edge_ocr_lite_load")(arguments[3], 0, 1, 3, &model) ||
      find<int(void*, char*, std::size_t)>(binding, "edge_ocr_lite_version")(model, version, sizeof version) ||
      find<int(void*, int, const float*, const int64_t*, int)>(binding, "edge_ocr_lite_input")(model, 0, x, shape, 4) ||
      find<int(void*)>(binding, "edge_ocr_lite_run")(model) ||
      find<int(void*, int, const float**, int64_t*, int*)>(binding, "edge_ocr_lite_output")(model, 0, &y, sides, &axes);
  if (failed) return std::fprintf(stderr, "%s\n", find<const char*()>(binding, "edge_ocr_lite_error")()), 1;
  std::printf("%s", version);
  for (int index = 0; index < 8; ++index) std::printf(" %g", static_cast<double>(y[index]));
  std::printf("\n");
  find<void(void*)>(binding, "edge_ocr_lite_close")(model);
  return 0;
}
