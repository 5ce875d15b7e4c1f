// Command generate makes the Go code of all proto files of the repository, and
// with -check only looks whether what is there is what it would make. It needs
// no protoc: the compiler and the plugins are Go modules of fixed versions.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// The version of protoc whose output this is like: it stands in the files.
var like = &pluginpb.Version{Major: new(int32(3)), Minor: new(int32(21)), Patch: new(int32(12))}

func main() {
	check := flag.Bool("check", false, "change nothing, and fail where something would change")
	root := flag.String("root", "../..", "the repository's `folder`")
	flag.Parse()
	if err := run(*root, *check); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(root string, check bool) error {
	var protos []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".proto" {
			protos = append(protos, path)
		}
		return err
	})
	if err == nil && len(protos) == 0 {
		err = errors.New("there is no proto file")
	}
	for _, p := range protos {
		if err == nil {
			err = generate(p, check)
		}
	}
	return err
}

// generate makes what one proto file stands for, beside it.
func generate(path string, check bool) error {
	dir, name := filepath.Split(path)
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{dir}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(context.Background(), name)
	if err != nil {
		return err
	}
	request := &pluginpb.CodeGeneratorRequest{FileToGenerate: []string{name}, Parameter: new("paths=source_relative"), CompilerVersion: like}
	seen := map[string]bool{}
	var add func(f protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i).FileDescriptor)
		}
		request.ProtoFile = append(request.ProtoFile, proto.CloneOf[*descriptorpb.FileDescriptorProto](protoutil.ProtoFromFileDescriptor(f)))
	}
	add(files[0])
	plugins := []string{"protoc-gen-go"}
	if files[0].Services().Len() > 0 {
		plugins = append(plugins, "protoc-gen-go-grpc")
	}
	for _, plugin := range plugins {
		made, err := ask(plugin, request)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, f := range made {
			if err := put(filepath.Join(dir, f.GetName()), []byte(f.GetContent()), check); err != nil {
				return err
			}
		}
	}
	return nil
}

// ask has a plugin make its files.
func ask(plugin string, request *pluginpb.CodeGeneratorRequest) ([]*pluginpb.CodeGeneratorResponse_File, error) {
	in, err := proto.Marshal(request)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("go", "tool", plugin)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", plugin, err)
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(out, &response); err != nil {
		return nil, err
	}
	if response.GetError() != "" {
		return nil, errors.New(response.GetError())
	}
	return response.File, nil
}

func put(path string, content []byte, check bool) error {
	there, err := os.ReadFile(path)
	if err == nil && bytes.Equal(there, content) {
		return nil
	}
	if check {
		return fmt.Errorf("%s is not what its proto file says; run: make generate", path)
	}
	fmt.Println("wrote", path)
	return os.WriteFile(path, content, 0o644)
}
