// fairhuman._C: addresses and sizes in, numbers out. It never sees torch's headers, so one build
// serves every version of torch; who calls it owns the memory and has checked its layout.

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "mpd.h"
#ifdef FAIRHUMAN_CUDA_VERSION
#include "mpd_cuda.h"
#endif

namespace py = pybind11;

namespace {

using fairhuman::MpdParameters;

void raise_on(int error) {
  if (error == fairhuman::kMpdBadSize) throw py::value_error("K or count is out of range");
  if (error == fairhuman::kMpdBadAlpha) throw py::value_error("alpha is out of range");
  if (error == fairhuman::kMpdBadNormalize) {
    throw py::value_error("normalize must be 0, 1 or 2, and max_norm > 0 (finite with 2)");
  }
  if (error == fairhuman::kMpdBadKeep) throw py::value_error("keep or anchor is out of range");
}

int solve_mpd_cpu(std::uintptr_t gram, std::int64_t count, int K, double alpha, double tolerance,
                  int normalize, double max_norm, double keep, int anchor, std::uintptr_t out) {
  const MpdParameters parameters{K, alpha, tolerance, normalize, max_norm, keep, anchor};
  int error = fairhuman::kMpdSuccess, seen = fairhuman::kMpdOk;
  {
    py::gil_scoped_release release;
    double* rows = reinterpret_cast<double*>(out);
    error = fairhuman::mpd_solve_cpu(reinterpret_cast<const double*>(gram), count, parameters, rows);
    for (std::int64_t n = 0; n < count && !error; ++n) {
      seen |= static_cast<int>(rows[n * (K + fairhuman::kMpdFields) + K + fairhuman::kMpdFlags]);
    }
  }
  raise_on(error);
  return seen;
}

// Parameters of which only the bound is used.
MpdParameters to_keep(int K, double keep, int anchor) {
  return MpdParameters{K, fairhuman::kMpdMinAlpha, 0.0, fairhuman::kMpdNone, 1.0, keep, anchor};
}

void keep_mpd_cpu(std::uintptr_t gram, std::int64_t count, int K, double keep, int anchor,
                  std::uintptr_t out) {
  int error = fairhuman::kMpdSuccess;
  {
    py::gil_scoped_release release;
    error = fairhuman::mpd_keep_cpu(reinterpret_cast<const double*>(gram), count,
                                    to_keep(K, keep, anchor), reinterpret_cast<double*>(out));
  }
  raise_on(error);
}

#ifdef FAIRHUMAN_CUDA_VERSION
constexpr const char* kBuild =
    " (fairhuman._C was built with CUDA " FAIRHUMAN_CUDA_VERSION " for " FAIRHUMAN_CUDA_ARCHS ")";

template <class Call>
void on_cuda(Call call, int device, std::uintptr_t stream, std::uintptr_t gram, std::int64_t count,
             const MpdParameters& parameters, std::uintptr_t out) {
  int error = fairhuman::kMpdSuccess;
  {
    py::gil_scoped_release release;
    error = call(device, reinterpret_cast<void*>(stream), reinterpret_cast<const double*>(gram),
                 count, parameters, reinterpret_cast<double*>(out));
  }
  raise_on(error);
  if (error < 0) {
    throw std::runtime_error(std::string("CUDA: ") + fairhuman::cuda_error_text(-error) + kBuild);
  }
}

void solve_mpd_cuda(int device, std::uintptr_t stream, std::uintptr_t gram, std::int64_t count,
                    int K, double alpha, double tolerance, int normalize, double max_norm,
                    double keep, int anchor, std::uintptr_t out) {
  on_cuda(fairhuman::mpd_solve_cuda, device, stream, gram, count,
          MpdParameters{K, alpha, tolerance, normalize, max_norm, keep, anchor}, out);
}

void keep_mpd_cuda(int device, std::uintptr_t stream, std::uintptr_t gram, std::int64_t count,
                   int K, double keep, int anchor, std::uintptr_t out) {
  on_cuda(fairhuman::mpd_keep_cuda, device, stream, gram, count, to_keep(K, keep, anchor), out);
}

py::object cuda_problem(int device) {
  int error = 0;
  {
    py::gil_scoped_release release;
    error = fairhuman::mpd_cuda_problem(device);
  }
  if (error == 0) return py::none();
  return py::str(std::string(fairhuman::cuda_error_text(error)) + kBuild);
}
#endif

py::dict build_info() {
  py::dict info;
  info["version"] = FAIRHUMAN_VERSION;
  info["compiler"] = FAIRHUMAN_COMPILER;
  info["cxx_standard"] = __cplusplus;
#ifdef FAIRHUMAN_CUDA_VERSION
  info["cuda"] = FAIRHUMAN_CUDA_VERSION;
  info["cuda_archs"] = FAIRHUMAN_CUDA_ARCHS;
#else
  info["cuda"] = py::none();
  info["cuda_archs"] = py::none();
#endif
  info["mpd_fields"] = static_cast<int>(fairhuman::kMpdFields);
  info["mpd_max_objectives"] = fairhuman::kMpdMaxObjectives;
  info["mpd_min_alpha"] = fairhuman::kMpdMinAlpha;
  info["mpd_max_alpha"] = fairhuman::kMpdMaxAlpha;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "FairHuman's native code: raw addresses and sizes, no torch.";
  m.def("solve_mpd_cpu", &solve_mpd_cpu, py::arg("gram"), py::arg("count"), py::arg("K"),
        py::arg("alpha"), py::arg("tolerance"), py::arg("normalize"), py::arg("max_norm"),
        py::arg("keep"), py::arg("anchor"), py::arg("out"),
        "Solve count matrices [count, K, K] float64 at address gram into out [count, K + 6] "
        "float64: weights, norm, residual, scale, cosine, iterations, status. Returns all their "
        "status bits. Releases the GIL.");
  m.def("keep_mpd_cpu", &keep_mpd_cpu, py::arg("gram"), py::arg("count"), py::arg("K"),
        py::arg("keep"), py::arg("anchor"), py::arg("out"),
        "Bound the weights in out, whose norm is the least that ||d|| is taken for: csrc/mpd.h.");
#ifdef FAIRHUMAN_CUDA_VERSION
  m.def("solve_mpd_cuda", &solve_mpd_cuda, py::arg("device"), py::arg("stream"), py::arg("gram"),
        py::arg("count"), py::arg("K"), py::arg("alpha"), py::arg("tolerance"),
        py::arg("normalize"), py::arg("max_norm"), py::arg("keep"), py::arg("anchor"),
        py::arg("out"), "The same in device memory: one launch on the stream, and no wait.");
  m.def("keep_mpd_cuda", &keep_mpd_cuda, py::arg("device"), py::arg("stream"), py::arg("gram"),
        py::arg("count"), py::arg("K"), py::arg("keep"), py::arg("anchor"), py::arg("out"),
        "The same in device memory: one launch on the stream, and no wait.");
  m.def("cuda_problem", &cuda_problem, py::arg("device"),
        "Why the device cannot run solve_mpd_cuda; None if it can.");
#endif
  m.def("build_info", &build_info,
        "Version, compiler, C++ standard; cuda and cuda_archs, None in a build without CUDA; the "
        "solver's sizes and bounds.");
}
