# Libraries from Debian bookworm; `make` installs them (tools/install_packages.sh).
find_package(Threads REQUIRED)
find_package(absl REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(hwy REQUIRED IMPORTED_TARGET libhwy)

# GEMM of the reference engine and of FAISS.
find_path(CBLAS_INCLUDE_DIR cblas.h PATH_SUFFIXES openblas x86_64-linux-gnu openblas-pthread
          x86_64-linux-gnu/openblas-pthread REQUIRED)
find_library(OPENBLAS_LIBRARY openblas REQUIRED)
add_library(semkv_openblas_dependency INTERFACE)
target_include_directories(semkv_openblas_dependency SYSTEM INTERFACE ${CBLAS_INCLUDE_DIR})
target_link_libraries(semkv_openblas_dependency INTERFACE ${OPENBLAS_LIBRARY})

# The package of FAISS ships no CMake config; a prefix built by tools/build_faiss.sh, when there is
# one, comes first through CMAKE_PREFIX_PATH.
find_path(FAISS_INCLUDE_DIR faiss/Clustering.h REQUIRED)
find_library(FAISS_LIBRARY faiss REQUIRED)
add_library(semkv_faiss_dependency INTERFACE)
target_include_directories(semkv_faiss_dependency SYSTEM INTERFACE ${FAISS_INCLUDE_DIR})
# The package is a static library, which names nothing that it needs.
find_package(OpenMP REQUIRED COMPONENTS CXX)
target_link_libraries(semkv_faiss_dependency INTERFACE ${FAISS_LIBRARY} semkv_openblas_dependency
                                                       OpenMP::OpenMP_CXX)

if(SEMKV_BUILD_TOOLS OR SEMKV_BUILD_BENCHMARKS)
  find_package(nlohmann_json REQUIRED)
endif()
if(SEMKV_BUILD_TOOLS)
  find_package(CLI11 REQUIRED)
  # Regular expressions of the reference engine's tokenizer.
  pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
endif()
if(SEMKV_BUILD_TESTS)
  find_package(GTest REQUIRED)
  # Fibers of the SIMT harness (tests/simt).
  find_package(Boost REQUIRED COMPONENTS context)
endif()
if(SEMKV_BUILD_BENCHMARKS)
  find_package(benchmark REQUIRED)
endif()
