// Aligns without Python: loads the operator and a package that AOTInductor has compiled, and runs it.
//
//     aoti_align aligner.pt2 _C.abi3.so arguments.pt results.pt
//
// aligner.pt2 and arguments.pt, a tuple of tensors, come from Python (docs/exporting.md, which shows this program, and
// how to compile it). results.pt gets the outputs in one row, named tuples unfolded; torch.load reads it.
#include <dlfcn.h>

#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

static std::vector<at::Tensor> read_tensors(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const c10::IValue tuple = torch::jit::pickle_load(bytes);
  std::vector<at::Tensor> tensors;
  for (const c10::IValue& value : tuple.toTupleRef().elements()) tensors.push_back(value.toTensor());
  return tensors;
}

static void write_tensors(const std::string& path, const std::vector<at::Tensor>& tensors) {
  std::vector<c10::IValue> values(tensors.begin(), tensors.end());
  const std::vector<char> bytes = torch::jit::pickle_save(c10::ivalue::Tuple::create(std::move(values)));
  std::ofstream file(path, std::ios::binary);
  if (!file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()))) {
    throw std::runtime_error("cannot write " + path);
  }
}

int main(int argc, char** argv) try {
  if (argc != 5) throw std::runtime_error("usage: aoti_align aligner.pt2 _C.abi3.so arguments.pt results.pt");
  // The library registers torch.ops.ctc_align when it is loaded. It needs libtorch, and nothing of Python.
  if (!dlopen(argv[2], RTLD_NOW)) throw std::runtime_error(dlerror());
  torch::inductor::AOTIModelPackageLoader aligner(argv[1]);

  const c10::InferenceMode no_gradients;
  const std::vector<at::Tensor> results = aligner.run(read_tensors(argv[3]));
  write_tensors(argv[4], results);
  for (const at::Tensor& result : results) std::cout << result.dtype() << " " << result.sizes() << "\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << "aoti_align: " << error.what() << "\n";
  return 1;
}
