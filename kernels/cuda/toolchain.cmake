# Which CUDA this build has. SHOAL_CUDA asks, SHOAL_CUDA_KIND answers: "", REAL or EMULATED.
#   AUTO      nvcc where it is found together with NCCL, else none
#   ON        nvcc and NCCL, or configuring fails
#   OFF       none
#   EMULATED  the same sources under the host compiler (tests/emulated_cuda); needs CUDA's headers only
set(SHOAL_CUDA AUTO CACHE STRING "AUTO, ON, OFF or EMULATED")
set_property(CACHE SHOAL_CUDA PROPERTY STRINGS AUTO ON OFF EMULATED)
set(SHOAL_CUDA_KIND "")

if(NOT SHOAL_CUDA MATCHES "^(AUTO|ON|OFF|EMULATED)$")
  message(FATAL_ERROR "SHOAL_CUDA=${SHOAL_CUDA}: give AUTO, ON, OFF or EMULATED")
endif()

# Where toolkits and the header files of PyPI's nvidia packages put their headers.
set(cuda_places $ENV{CUDA_HOME} $ENV{CUDA_PATH} /usr/local/cuda /opt/cuda)
set(SHOAL_CUDA_HEADERS "" CACHE STRING
  "Folders with cuda_runtime.h, cublasLt.h and nccl.h, where they are in no usual place")

if(SHOAL_CUDA STREQUAL "EMULATED")
  set(SHOAL_CUDA_INCLUDE_DIRS "")
  foreach(header cuda_runtime.h cublasLt.h nccl.h)
    string(MAKE_C_IDENTIFIER "SHOAL_DIR_OF_${header}" variable)
    find_path(${variable} ${header} HINTS ${SHOAL_CUDA_HEADERS} ${cuda_places}
      PATH_SUFFIXES include targets/x86_64-linux/include)
    if(NOT ${variable})
      message(FATAL_ERROR "SHOAL_CUDA=EMULATED: ${header} not found; install the CUDA toolkit, or give "
        "-DSHOAL_CUDA_HEADERS=DIR;DIR with the include folders of PyPI's nvidia-cuda-runtime, "
        "nvidia-cublas and nvidia-nccl packages")
    endif()
    list(APPEND SHOAL_CUDA_INCLUDE_DIRS ${${variable}})
  endforeach()
  list(REMOVE_DUPLICATES SHOAL_CUDA_INCLUDE_DIRS)
  set(SHOAL_CUDA_KIND EMULATED)
elseif(NOT SHOAL_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  if(NOT CMAKE_CUDA_COMPILER)
    find_program(SHOAL_NVCC nvcc HINTS ${cuda_places} PATH_SUFFIXES bin)
    if(SHOAL_NVCC)
      set(CMAKE_CUDA_COMPILER ${SHOAL_NVCC} CACHE FILEPATH "CUDA compiler")
    endif()
  endif()
  if(CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
  endif()
  # The GPU that is present, else one architecture: every further one is another compilation of every
  # kernel. Releases name theirs: -DCMAKE_CUDA_ARCHITECTURES="80;86;89;90a;100".
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
      OUTPUT_VARIABLE caps OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
    if(NOT failed AND caps MATCHES "^([0-9]+)\\.([0-9])")
      set(CMAKE_CUDA_ARCHITECTURES ${CMAKE_MATCH_1}${CMAKE_MATCH_2} CACHE STRING "")
    else()
      set(CMAKE_CUDA_ARCHITECTURES 80 CACHE STRING "")  # later GPUs compile its PTX when they load it
    endif()
  endif()
  check_language(CUDA)
  find_path(SHOAL_NCCL_INCLUDE nccl.h HINTS ${SHOAL_CUDA_HEADERS} ${cuda_places} PATH_SUFFIXES include)
  find_library(SHOAL_NCCL_LIBRARY nccl HINTS ${SHOAL_CUDA_HEADERS} ${cuda_places}
    PATH_SUFFIXES lib lib64 targets/x86_64-linux/lib)
  if(CMAKE_CUDA_COMPILER AND SHOAL_NCCL_INCLUDE AND SHOAL_NCCL_LIBRARY)
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.9)  # cuBLASLt's 128x128 scales of FP8
      message(FATAL_ERROR "${CMAKE_CUDA_COMPILER} is CUDA ${CMAKE_CUDA_COMPILER_VERSION}; 12.9 or newer is "
        "needed: name another by -DCMAKE_CUDA_COMPILER, or build with -DSHOAL_CUDA=OFF")
    endif()
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake before 3.26 knows the flag for nvcc 12 only
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      list(APPEND CMAKE_CUDA_COMPILE_FEATURES cuda_std_20)
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(SHOAL_CUDA_KIND REAL)
    message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES}")
  elseif(SHOAL_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SHOAL_CUDA=ON: nvcc is '${CMAKE_CUDA_COMPILER}', nccl.h in "
      "'${SHOAL_NCCL_INCLUDE}', libnccl '${SHOAL_NCCL_LIBRARY}'; all three are needed")
  else()
    message(STATUS "CUDA: none (nvcc or NCCL not found); the CPU back end only")
  endif()
endif()
