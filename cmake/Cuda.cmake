# The CUDA kernels: semkv_cuda, a static library, where there is nvcc. Without it, and in sanitizer
# builds, everything else is complete; the kernels' sources still run in the SIMT harness of the tests.
option(SEMKV_CUDA "Build the CUDA kernels where nvcc is found" ON)
set(SEMKV_CUDA_ARCHITECTURES 90a CACHE STRING "GPU architectures of the CUDA kernels")

# Every target with .cu files calls this once.
function(semkv_cuda_options target)
  target_compile_options(${target} PRIVATE -Xcompiler=-Wall,-Wextra)
  if(SEMKV_WARNINGS_AS_ERRORS)
    target_compile_options(${target} PRIVATE -Werror=all-warnings -Xcompiler=-Werror)
  endif()
endfunction()

find_program(SEMKV_NVCC nvcc PATHS /usr/local/cuda/bin)
if(NOT SEMKV_CUDA OR SEMKV_SANITIZE)
  message(STATUS "semkv: CUDA kernels not asked for in this build")
elseif(SEMKV_NVCC)
  set(CMAKE_CUDA_COMPILER ${SEMKV_NVCC})
  set(CMAKE_CUDA_ARCHITECTURES ${SEMKV_CUDA_ARCHITECTURES})
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  # The runtime starts without a driver, and then says "no device".
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
  message(STATUS "semkv: CUDA kernels for sm_${SEMKV_CUDA_ARCHITECTURES} by nvcc "
                 "${CMAKE_CUDA_COMPILER_VERSION}")

  add_library(semkv_cuda STATIC)
  target_include_directories(semkv_cuda PRIVATE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include
                                        PUBLIC ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  semkv_cuda_options(semkv_cuda)
  # Launchers ask the operations' host code whether it serves what they are asked.
  target_link_libraries(semkv_cuda INTERFACE semkv_ops)
  # For the tests of tests/cuda: -v and the launcher keep what ptxas says about registers and memory,
  # and machine code that is not compressed can be read.
  target_compile_options(semkv_cuda PRIVATE -Xptxas=-v -no-compress)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  set_target_properties(semkv_cuda PROPERTIES CUDA_COMPILER_LAUNCHER
    "${Python3_EXECUTABLE};${PROJECT_SOURCE_DIR}/tools/keep_ptxas_log.py")
else()
  message(STATUS "semkv: nvcc not found, CUDA parts left out; the host backend is complete")
endif()
