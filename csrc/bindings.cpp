// fairhuman._C: addresses and sizes in, numbers out. It never sees torch's headers, so one build
// serves every version of torch; who calls it owns the memory and has checked its layout.

#include <pybind11/pybind11.h>

#include <cstdint>

#include "mpd.h"

namespace py = pybind11;

namespace {

void solve_mpd_cpu(std::uintptr_t gram, std::int64_t count, int K, double alpha,
                   std::uintptr_t weights, std::uintptr_t norm, std::uintptr_t residual,
                   std::uintptr_t iterations, std::uintptr_t status) {
  int error = fairhuman::kMpdSuccess;
  {
    py::gil_scoped_release release;
    error = fairhuman::mpd_solve_cpu(
        reinterpret_cast<const double*>(gram), count, K, alpha, reinterpret_cast<double*>(weights),
        reinterpret_cast<double*>(norm), reinterpret_cast<double*>(residual),
        reinterpret_cast<std::int32_t*>(iterations), reinterpret_cast<std::int32_t*>(status));
  }
  if (error == fairhuman::kMpdBadSize) throw py::value_error("K must be 1 to 16, count >= 0");
  if (error == fairhuman::kMpdBadAlpha) throw py::value_error("alpha must be in [0.5, 16]");
}

py::dict build_info() {
  py::dict info;
  info["version"] = FAIRHUMAN_VERSION;
  info["compiler"] = FAIRHUMAN_COMPILER;
  info["cxx_standard"] = __cplusplus;
  info["cuda"] = false;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "FairHuman's native code: raw addresses and sizes, no torch.";
  m.def("solve_mpd_cpu", &solve_mpd_cpu, py::arg("gram"), py::arg("count"), py::arg("K"),
        py::arg("alpha"), py::arg("weights"), py::arg("norm"), py::arg("residual"),
        py::arg("iterations"), py::arg("status"),
        "Solve count matrices [count, K, K] float64 at address gram; weights [count, K], norm and "
        "residual [count] float64, iterations and status [count] int32. Releases the GIL.");
  m.def("build_info", &build_info, "Version, compiler, C++ standard, and whether CUDA is built in.");
}
